// Runs the layers of fmnist_jax/graph.py on one image: arrays are flat, in the order H, W, C.
'use strict';

/**
 * What try_it.py wrote, with its arrays decoded: 16 bits with a scale for each output, or float32.
 * @param {string} json
 */
function readNetwork(json) {
  const network = JSON.parse(json);
  for (const {arrays} of network.layers) {
    for (const array of Object.values(arrays)) {
      if (array.scale) {
        const scale = new Float32Array(fromBase64(array.scale));
        array.values = new Float32Array(new Int16Array(fromBase64(array.values)));
        array.values.forEach((_, i, values) => values[i] *= scale[i % scale.length]);
      } else {
        array.values = new Float32Array(fromBase64(array.values));
      }
    }
  }
  return network;
}

/** @return {ArrayBuffer} */
function fromBase64(text) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) {
    bytes[i] = characters.charCodeAt(i);
  }
  return bytes.buffer;
}

/**
 * Class probabilities.
 * @param {Object} network of readNetwork
 * @param {Uint8Array} image [H, W, C]
 * @return {Float64Array} [K]
 */
function classify(network, image) {
  const results = [{shape: network.image_shape, values: Float32Array.from(image, (v) => v / 255)}];
  for (const layer of network.layers) {
    const inputs = layer.inputs.map((index) => results[index]);
    results.push({shape: layer.shape, values: LAYERS[layer.kind](layer, ...inputs)});
  }
  const logits = Float64Array.from(results.at(-1).values), largest = Math.max(...logits);
  const exps = logits.map((logit) => Math.exp(logit - largest));
  const sum = exps.reduce((a, b) => a + b);
  return exps.map((value) => value / sum);
}

/** What each kind of layer makes of its inputs; the values of the result. */
const LAYERS = {
  conv,
  dense: ({arrays: {kernel, bias}}, {values}) => {
    const result = bias.values.slice(), outputs = result.length;
    addProducts(result, 0, outputs, values, 0, values.length, kernel.values, 0, outputs);
    return result;
  },
  max_pool: (layer, x) => pool(layer, x, -Infinity, Math.max),
  avg_pool: (layer, x) => {
    const area = layer.settings.window[0] * layer.settings.window[1];
    return pool(layer, x, 0, (a, b) => a + b).map((sum) => sum / area);
  },
  affine: ({arrays: {scale, shift}}, {values}) => values.map((value, i) => {
    const channel = i % scale.values.length;
    return value * scale.values[channel] + shift.values[channel];
  }),
  add: (layer, x, y) => pairwise(layer, x, y, (a, b) => a + b),
  multiply: (layer, x, y) => pairwise(layer, x, y, (a, b) => a * b),
  flatten: (_, {values}) => values,
  reshape: (_, {values}) => values,
  relu: (_, {values}) => values.map((v) => Math.max(v, 0)),
  gelu: (_, {values}) => values.map(
      (v) => v / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)))),
  silu: (_, {values}) => values.map((v) => v * sigmoid(v)),
  sigmoid: (_, {values}) => values.map(sigmoid),
  tanh: (_, {values}) => values.map(Math.tanh),
};

function sigmoid(value) {
  return 1 / (1 + Math.exp(-value));
}

/**
 * Adds to result[to + o], for each o < count, the sum over i < depth of values[at + i] times
 * kernel[from + i * stride + o]. Nearly all the work is here; four at a time, results are read
 * and written a quarter as often.
 */
function addProducts(result, to, count, values, at, depth, kernel, from, stride) {
  let i = 0;
  for (; i + 3 < depth; i += 4) {
    const a = values[at + i], b = values[at + i + 1], c = values[at + i + 2];
    const d = values[at + i + 3];
    const first = from + i * stride, second = first + stride, third = second + stride;
    const fourth = third + stride;
    for (let o = 0; o < count; o++) {
      result[to + o] += a * kernel[first + o] + b * kernel[second + o] + c * kernel[third + o] +
          d * kernel[fourth + o];
    }
  }
  for (; i < depth; i++) {
    const a = values[at + i], first = from + i * stride;
    for (let o = 0; o < count; o++) {
      result[to + o] += a * kernel[first + o];
    }
  }
}

function conv({settings, arrays: {kernel, bias}, shape}, {shape: [height, width, channels], values}) {
  const {strides, padding, dilation, groups} = settings;
  const [kernelHeight, kernelWidth, depth, outputs] = kernel.shape;
  const result = new Float32Array(shape[0] * shape[1] * outputs), count = outputs / groups;
  for (let row = 0, to = 0; row < shape[0]; row++) {
    for (let column = 0; column < shape[1]; column++, to += outputs) {
      result.set(bias.values, to);
      for (let i = 0; i < kernelHeight; i++) {
        const y = row * strides[0] + i * dilation[0] - padding[0][0];
        for (let j = 0; j < kernelWidth && y >= 0 && y < height; j++) {
          const x = column * strides[1] + j * dilation[1] - padding[1][0];
          for (let group = 0; group < groups && x >= 0 && x < width; group++) {
            addProducts(result, to + group * count, count,
                        values, (y * width + x) * channels + group * depth, depth,
                        kernel.values, (i * kernelWidth + j) * depth * outputs + group * count,
                        outputs);
          }
        }
      }
    }
  }
  return result;
}

function pool({settings: {window, strides, padding}, shape}, {shape: size, values}, start, join) {
  const [height, width, channels] = size;
  const result = new Float32Array(shape[0] * shape[1] * channels);
  for (let row = 0, to = 0; row < shape[0]; row++) {
    const top = row * strides[0] - padding[0][0];
    for (let column = 0; column < shape[1]; column++) {
      const left = column * strides[1] - padding[1][0];
      for (let c = 0; c < channels; c++, to++) {
        let value = start;
        for (let y = Math.max(top, 0); y < Math.min(top + window[0], height); y++) {
          for (let x = Math.max(left, 0); x < Math.min(left + window[1], width); x++) {
            value = join(value, values[(y * width + x) * channels + c]);
          }
        }
        result[to] = value;
      }
    }
  }
  return result;
}

/** Of two inputs of as many axes; one may have a length of 1 where the other has more. */
function pairwise({shape}, a, b, join) {
  const result = new Float32Array(shape.reduce((x, y) => x * y));
  const place = (to, lengths) => {
    let at = 0;
    for (let axis = shape.length - 1, stride = 1; axis >= 0; axis--) {
      at += to % shape[axis] % lengths[axis] * stride;
      stride *= lengths[axis];
      to = Math.floor(to / shape[axis]);
    }
    return at;
  };
  const isWhole = [a, b].map(({values}) => values.length === result.length);
  return result.map((_, to) => join(a.values[isWhole[0] ? to : place(to, a.shape)],
                                    b.values[isWhole[1] ? to : place(to, b.shape)]));
}
