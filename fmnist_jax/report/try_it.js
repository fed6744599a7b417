// The card "Try it": takes a picture or a drawing, shows what the network sees and says.
'use strict';

const MOST_BARS = 10;
const PEN = 1 / 24;  // thickness, of the paper's side
const INK = 51;  // a dark grey

const find = (id) => document.getElementById(id);
const network = readNetwork(find('network').textContent);
const paper = find('paper').getContext('2d', {willReadFrequently: true});
const side = paper.canvas.width;
let asked = 0;  // Of pictures given in a hurry the last one counts.
let pen = null;  // Where it is while it draws.
let isDrawing = false;  // Whether the paper holds a drawing, to which strokes are added.

function wipe() {
  paper.fillStyle = '#fff';
  paper.fillRect(0, 0, side, side);
}

/** Says what the network makes of a picture, {width, height, data}. */
function answer(what, picture) {
  const began = performance.now();
  const input = toInput(picture, network.image_shape);
  const prepared = performance.now();
  const probabilities = classify(network, input);
  const classified = performance.now();
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  showInput(input);
  say(what, `${network.class_names[order[0]]} ${percent(probabilities[order[0]])}`,
      `prepared in ${milliseconds(prepared - began)}, ` +
      `classified in ${milliseconds(classified - prepared)}`);
  find('bars').replaceChildren(...order.slice(0, MOST_BARS).map(
      (k) => bar(network.class_names[k], probabilities[k])));
}

function showInput(input) {
  const [height, width, channels] = network.image_shape;
  const shown = new ImageData(width, height);
  shown.data.forEach((_, i) => {
    const c = i % 4;
    shown.data[i] = c === 3 ? 255 : input[Math.floor(i / 4) * channels + Math.min(c, channels - 1)];
  });
  find('seen').getContext('2d').putImageData(shown, 0, 0);
}

function say(what, said, timing) {
  find('what').textContent = what;
  find('said').textContent = said;
  find('timing').textContent = timing;
}

function bar(name, probability) {
  const item = document.createElement('li');
  const [label, track, share] = ['span', 'div', 'span'].map((tag) => document.createElement(tag));
  label.textContent = name;
  share.textContent = percent(probability);
  track.append(document.createElement('i'));
  track.firstChild.style.width = `${100 * probability}%`;
  item.append(label, track, share);
  return item;
}

/** As the rest of the report has it: 100% is said of 1 alone. */
function percent(share) {
  return share >= 0.9995 && share < 1 ? '>99.9%' : `${(100 * share).toFixed(1)}%`;
}

function milliseconds(time) {
  return `${time < 10 ? time.toFixed(1) : time.toFixed(0)} ms`;
}

/** Takes nothing in place of a picture. */
function reset(said) {
  asked++;
  isDrawing = false;
  wipe();
  find('seen').getContext('2d').clearRect(0, 0, find('seen').width, find('seen').height);
  find('bars').replaceChildren();
  say('', said, '');
}

/** Takes a file. */
async function take(what, file) {
  const number = ++asked;
  const bitmap = await decode(file).catch(() => null);
  if (number === asked && !bitmap) {
    reset(`${what} is no picture that this browser can read.`);
  } else if (number === asked && bitmap.width * bitmap.height > MOST_PIXELS) {
    reset(`${what} is larger than ${MOST_PIXELS / 1e6} million pixels.`);
  } else if (number === asked) {
    const factor = side / Math.max(bitmap.width, bitmap.height);
    const [width, height] = [bitmap.width * factor, bitmap.height * factor];
    isDrawing = false;
    wipe();
    paper.imageSmoothingEnabled = factor < 1;
    paper.imageSmoothingQuality = 'high';
    paper.drawImage(bitmap, (side - width) / 2, (side - height) / 2, width, height);
    answer(what, pixelsOf(bitmap));
  }
  bitmap?.close();
}

function takeFrom(input) {
  if (input.files.length) {
    take(input.files[0].name, input.files[0]);
    input.value = '';  // So that the same file can be chosen again.
  }
}

function takeSample(button) {
  const image = button.querySelector('img');
  take(`${image.alt}: ${button.textContent}`, new Blob([fromBase64(image.src.split(',')[1])]));
}

function answerDrawing() {
  const picture = paper.getImageData(0, 0, side, side);
  if (find('fill').checked) {
    fillOutlines(picture);
  }
  answer('Your drawing', picture);
}

/** Makes dark what cannot be reached from the edge over light pixels: garments are no outlines. */
function fillOutlines({width, height, data}) {
  const isOutside = new Uint8Array(width * height), reached = [];
  const reach = (x, y) => {
    const at = y * width + x;
    if (x >= 0 && x < width && y >= 0 && y < height && !isOutside[at] && data[4 * at] > 127) {
      isOutside[at] = 1;
      reached.push(at);
    }
  };
  for (let i = 0; i < Math.max(width, height); i++) {
    [[i, 0], [i, height - 1], [0, i], [width - 1, i]].forEach(([x, y]) => reach(x, y));
  }
  while (reached.length) {
    const at = reached.pop(), x = at % width, y = (at - x) / width;
    reach(x - 1, y);
    reach(x + 1, y);
    reach(x, y - 1);
    reach(x, y + 1);
  }
  isOutside.forEach((outside, at) => {
    if (!outside && data[4 * at] > INK) {
      data.fill(INK, 4 * at, 4 * at + 3);
    }
  });
}

/** Draws from where the pen was to where a pointer is. */
function draw(event) {
  const box = paper.canvas.getBoundingClientRect();
  const to = {x: (event.clientX - box.left) * side / box.width,
              y: (event.clientY - box.top) * side / box.height};
  paper.beginPath();
  paper.moveTo((pen ?? to).x, (pen ?? to).y);
  paper.lineTo(to.x, to.y);
  Object.assign(paper, {strokeStyle: `rgb(${INK}, ${INK}, ${INK})`, lineWidth: PEN * side, lineCap: 'round'});
  paper.stroke();
  pen = to;
}

paper.canvas.addEventListener('pointerdown', (event) => {
  if (event.isPrimary && event.button === 0) {
    asked++;
    if (!isDrawing) {
      wipe();
      isDrawing = true;
    }
    paper.canvas.setPointerCapture(event.pointerId);
    draw(event);
  }
});
paper.canvas.addEventListener('pointermove', (event) => {
  if (pen && event.isPrimary) {
    draw(event);
  }
});
paper.canvas.addEventListener('lostpointercapture', () => {
  pen = null;
  answerDrawing();
});

find('choose').addEventListener('click', () => find('file').click());
find('camera').addEventListener('click', () => find('photograph').click());
find('clear').addEventListener('click', () => reset('Draw a garment, or choose a picture.'));
find('fill').addEventListener('change', () => isDrawing && answerDrawing());
for (const id of ['file', 'photograph']) {
  find(id).addEventListener('change', (event) => takeFrom(event.target));
}
for (const button of document.querySelectorAll('.offered button')) {
  button.addEventListener('click', () => takeSample(button));
}

addEventListener('paste', (event) => {
  const file = event.clipboardData.files[0];
  if (file) {
    take('What you pasted', file);
  }
});
for (const kind of ['dragover', 'dragleave', 'drop']) {
  addEventListener(kind, (event) => {
    event.preventDefault();  // Else the browser opens the file in place of this page.
    find('try').classList.toggle('dropping', kind === 'dragover');
    const file = event.dataTransfer.files[0];
    if (kind === 'drop' && file) {
      take(file.name, file);
    }
  });
}

find('asleep').hidden = true;
find('try').hidden = false;
reset('');
takeSample(document.querySelector('.offered button'));
