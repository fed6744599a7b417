// From a picture to what a model takes: the eight steps of fmnist_jax/photograph.py, once more.
'use strict';

const MOST_PIXELS = 100e6;
const AT_ONCE = 2 ** 22;  // pixels that are on a canvas at a time: phones allow four times as many
const TRIMMED = 12;
const GREY = [299, 587, 114];  // thousandths

/**
 * A picture, turned as its EXIF orientation says; rejects when it is none.
 * @param {Blob} file
 * @return {!Promise<ImageBitmap>}
 */
function decode(file) {
  return createImageBitmap(file, {
    imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'});
}

/**
 * The rest of step 1: the picture on white.
 * @param {ImageBitmap} bitmap
 * @return {{width: number, height: number, data: Uint8ClampedArray}} RGBA
 */
function pixelsOf(bitmap) {
  const {width, height} = bitmap;
  const rows = Math.min(height, Math.ceil(AT_ONCE / width));
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [width, rows];
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const data = new Uint8ClampedArray(4 * width * height);
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillStyle = '#fff';
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -top);
    data.set(context.getImageData(0, 0, width, count).data, 4 * width * top);
  }
  return {width, height, data};
}

/**
 * Steps 2 to 8.
 * @param {{width: number, height: number, data: Uint8ClampedArray}} picture RGBA, opaque
 * @param {number[]} shape [H, W, C] of the model, C being 1 or 3
 * @return {Uint8Array} [H, W, C]
 */
function toInput(picture, [height, width, channels]) {
  const result = new Uint8Array(height * width * channels);
  if (picture.height === height && picture.width === width && (channels === 3 || isGrey(picture))) {
    return result.map((_, i) => picture.data[4 * Math.floor(i / channels) + i % channels]);
  }
  const background = backgroundOf(picture);
  const box = trimmed(picture, background);
  const factor = Math.min(height / box.height, width / box.width);
  const size = [box.height, box.width].map(
      (side) => Math.max(Math.floor(side * factor + 0.5), 1));
  const image = sharpened(resized(picture, box, size), size);
  const top = Math.floor((height - size[0]) / 2), left = Math.floor((width - size[1]) / 2);
  const negate = greyOf(background) > 127.5;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const row = y - top, column = x - left;
      const inside = row >= 0 && row < size[0] && column >= 0 && column < size[1];
      const at = 3 * (row * size[1] + column);
      let pixel = inside ? image.subarray(at, at + 3) : background;
      if (channels === 1) {
        pixel = [negate ? 255 - greyOf(pixel) : greyOf(pixel)];
      }
      for (let c = 0; c < channels; c++) {
        result[(y * width + x) * channels + c] =
            Math.floor(Math.min(Math.max(pixel[c], 0), 255) + (0.5 + 1e-6));
      }
    }
  }
  return result;
}

function isGrey({data}) {
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) {
      return false;
    }
  }
  return true;
}

function greyOf(pixel) {
  return (pixel[0] * GREY[0] + pixel[1] * GREY[1] + pixel[2] * GREY[2]) / 1000;
}

/** The median of the four corners, channel by channel. */
function backgroundOf({width, height, data}) {
  const corners = [0, width - 1, (height - 1) * width, height * width - 1];
  return [0, 1, 2].map((c) => {
    const values = corners.map((corner) => data[4 * corner + c]).sort((a, b) => a - b);
    return (values[1] + values[2]) / 2;
  });
}

/** What is left of a picture without the edges that are its background. */
function trimmed({width, height, data}, background) {
  let top = height, bottom = -1, left = width, right = -1;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      if (Math.abs(data[i] - background[0]) > TRIMMED ||
          Math.abs(data[i + 1] - background[1]) > TRIMMED ||
          Math.abs(data[i + 2] - background[2]) > TRIMMED) {
        top = Math.min(top, y);
        bottom = y;
        left = Math.min(left, x);
        right = Math.max(right, x);
      }
    }
  }
  return bottom < 0 ? {top: 0, left: 0, height, width} :
      {top, left, height: bottom - top + 1, width: right - left + 1};
}

/** Means of areas: Float64Array [...size, 3] of the box in a picture. */
function resized({width, data}, box, size) {
  const down = areas(box.height, size[0]), across = areas(box.width, size[1]);
  const result = new Float64Array(size[0] * size[1] * 3);
  for (let row = 0; row < size[0]; row++) {
    for (let y = down.first[row]; y <= down.last[row]; y++) {
      for (let column = 0; column < size[1]; column++) {
        const sums = [0, 0, 0];
        for (let x = across.first[column]; x <= across.last[column]; x++) {
          const at = 4 * ((box.top + y) * width + box.left + x), part = across.part(column, x);
          sums[0] += part * data[at];
          sums[1] += part * data[at + 1];
          sums[2] += part * data[at + 2];
        }
        for (let c = 0; c < 3; c++) {
          result[3 * (row * size[1] + column) + c] += down.part(row, y) * sums[c];
        }
      }
    }
  }
  return result;
}

/** Which of `old` pixels each of `count` new ones covers, and which part each has in their mean. */
function areas(old, count) {
  const step = old / count;
  const covered = (at, pixel) =>
    Math.min(at * step + step, pixel + 1) - Math.max(at * step, pixel);
  const places = [...Array(count).keys()];
  return {
    first: places.map((at) => Math.floor(at * step)),
    last: places.map((at) => Math.min(Math.ceil(at * step + step), old) - 1),
    part: (at, pixel) => Math.max(covered(at, pixel), 0) / step,
  };
}

/** Twice the image [...size, 3] less its Gaussian mean (3x3, deviation 1, edges repeated). */
function sharpened(image, [height, width]) {
  const weights = [Math.exp(-0.5), 1, Math.exp(-0.5)];
  const total = weights[0] + weights[1] + weights[2];
  const blurred = (values, length, stride) => values.map((_, i) => {
    const place = Math.floor(i / stride) % length;
    return [-1, 0, 1].reduce((sum, step) => {
      const taken = Math.min(Math.max(place + step, 0), length - 1);
      return sum + weights[step + 1] / total * values[i + (taken - place) * stride];
    }, 0);
  });
  const mean = blurred(blurred(image, height, 3 * width), width, 3);
  return image.map((value, i) => 2 * value - mean[i]);
}
