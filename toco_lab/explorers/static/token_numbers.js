/* What the token explorer computes: cosines from int8 tokens, principal components as colours, lengths, and their colours.

quantise.py makes the tokens and measures their error; browser_data.py packs them. token_explorer.js follows in the same
module.
*/

const SCALES = {
  // 33 anchors of matplotlib's colour scales of these names; colours between them are interpolated linearly
  sequential: {
    label: "viridis", low: 0, high: 1,
    table: table("440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d2f6a8e2c728e297a8e26818e23898e21908c1f988b1f9f8821a68528ae8031b57b3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725"),
  },
  signed: {
    label: "blue-white-red (RdBu_r)", low: -1, high: 1,
    table: table("0530610e41781752901f63a72a71b2347fb93f8dc0529cc86bacd083bcd99ac9e0aed3e6c1ddecd3e6f0dfecf3ebf1f5f7f7f6f9eee8fbe6d9fdddcafbceb6f8bda0f5ac8bee9878e58268dc6d57d25749c6413ebb2a34ad162a960f267e082367001f"),
  },
};
const REGIONS = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]];

function table(hex) {
  const anchors = hex.match(/../g).map((pair) => parseInt(pair, 16));
  const last = anchors.length / 3 - 1, colours = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * last, below = Math.min(Math.floor(place), last - 1), share = place - below;
    for (let c = 0; c < 3; c++) colours[3 * i + c] = (1 - share) * anchors[3 * below + c] + share * anchors[3 * below + 3 + c];
  }
  return colours;
}

const colourIndex = (scale, value) =>
  Math.max(0, Math.min(255, Math.round(((value - scale.low) / (scale.high - scale.low)) * 255)));
const tick = ({ low, high }, i) => `${i || low < 0 ? "" : "\u2264 "}${(low + ((high - low) * i) / 5).toFixed(1).replace("-", "\u2212")}`;
const css = (scale, i) => `rgb(${scale.table.slice(3 * i, 3 * i + 3).join(", ")})`;
const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
const fixed = (value) => value.toFixed(2).replace("-", "\u2212");
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
const rounded = (value) => Math.round(value * 1e4) / 1e4;

/* The tokens of one model and image. A slab is one step and layer; what does not depend on the patch is kept. */
class Tokens {
  constructor(bytes, map) {
    this.map = map;
    this.bytes = bytes;
    this.count = map.grid[0] * map.grid[1];
    this.slabs = new Map();
    let offset = map.offset;
    this.values = map.widths.map((row) => row.map((width) => {
      const part = bytes.subarray(offset, offset + this.count * width);
      offset += part.length;
      return part;
    }));
  }

  /* Whether a patch of one can be looked for in the other: their tokens have the same directions wherever both are shown. */
  comparable(other) {
    const { bases, steps, layers } = this.map, theirs = other.map.bases;
    if (!bases || !theirs || layers.join() !== other.map.layers.join()) return false;
    return steps.every((step, i) => bases[i].every((basis, layer) => basis === theirs[nearest(other.map.steps, step)][layer]));
  }

  slab(step, layer) {
    const key = step * this.map.layers.length + layer;
    if (!this.slabs.has(key)) {
      const values = this.values[step][layer], width = this.map.widths[step][layer], count = this.count;
      const inverse = new Float64Array(count), sum = new Float64Array(width);
      for (let i = 0, p = 0; i < count; i++, p += width) {
        let square = 0;
        for (let d = 0; d < width; d++) square = (square + values[p + d] * values[p + d]) | 0;
        inverse[i] = square ? 1 / Math.sqrt(square) : 0; // a zero token has cosine 0 with all
        for (let d = 0; d < width; d++) sum[d] += values[p + d] * inverse[i];
      }
      this.slabs.set(key, { values, width, inverse, sum });
    }
    return this.slabs.get(key);
  }

  /* Cosine of one patch to all. The patch may be one of another image, `from`, at a step and layer of its own. */
  similarity(step, layer, patch, from = this, place = [step, layer]) {
    const { values, width, inverse } = this.slab(step, layer), source = from.slab(...place);
    const chosen = Int32Array.from(source.values.subarray(patch * width, (patch + 1) * width));
    const result = new Float64Array(this.count), own = source.inverse[patch];
    for (let i = 0, p = 0; i < this.count; i++, p += width) {
      let dot = 0;
      for (let d = 0; d < width; d++) dot = (dot + values[p + d] * chosen[d]) | 0; // exact: k * 127 * 127 < 2^31
      result[i] = dot * own * inverse[i];
    }
    return result;
  }

  /* Mean cosine of one patch to all others, from the sum of all unit tokens: k products instead of N * k. */
  mean(step, layer, patch, from = this, place = [step, layer]) {
    const { width, sum } = this.slab(step, layer), { values, inverse } = from.slab(...place);
    let total = 0;
    for (let d = 0; d < width; d++) total += values[patch * width + d] * sum[d];
    if (from !== this) return (total * inverse[patch]) / this.count;
    return (total * inverse[patch] - (inverse[patch] ? 1 : 0)) / Math.max(1, this.count - 1);
  }

  /* Lengths of the tokens, or null where they were not kept. */
  length(step, layer) {
    const { lengths, layers } = this.map;
    if (!lengths) return null;
    const [low, high] = lengths.ends[step][layer].map((end) => Math.log(Math.max(end, 1e-12)));
    const begin = lengths.offset + (step * layers.length + layer) * this.count;
    return Float64Array.from(this.bytes.subarray(begin, begin + this.count), (value) => Math.exp(low + ((high - low) * (value & 255)) / 255));
  }
}

/* Principal components of unit tokens as colours: for each of the slabs (of one width) N rows of three bytes. All slabs
have one set of components, of what all their tokens have together. The first is red, the second green, the third blue;
each is stretched so that 2 % of the tokens lie beyond either end. */
function componentColours(slabs) {
  const width = slabs[0].width, count = slabs.reduce((sum, { inverse }) => sum + inverse.length, 0);
  const mean = new Float64Array(width), spread = new Float64Array(width * width);
  for (const { sum } of slabs) for (let d = 0; d < width; d++) mean[d] += sum[d] / count;
  for (const { values, inverse } of slabs) {
    const row = new Float64Array(width);
    for (let i = 0; i < inverse.length; i++) {
      for (let d = 0; d < width; d++) row[d] = values[i * width + d] * inverse[i] - mean[d];
      for (let d = 0, p = 0; d < width; d++, p += width) for (let e = 0; e <= d; e++) spread[p + e] += row[d] * row[e];
    }
  }
  for (let d = 0; d < width; d++) for (let e = 0; e < d; e++) spread[e * width + d] = spread[d * width + e];
  const axes = leadingAxes(spread, width, 3);
  const shares = slabs.map(({ values, inverse }) => {
    const placed = new Float64Array(3 * inverse.length);
    for (let i = 0; i < inverse.length; i++) axes.forEach((axis, c) => {
      let dot = 0;
      for (let d = 0; d < width; d++) dot += (values[i * width + d] * inverse[i] - mean[d]) * axis[d];
      placed[3 * i + c] = dot;
    });
    return placed;
  });
  const ends = [0, 1, 2].map((c) => {
    const sorted = shares.flatMap((placed) => [...placed].filter((_, p) => p % 3 === c)).sort((a, b) => a - b);
    return [sorted[Math.round(0.02 * (count - 1))], sorted[Math.round(0.98 * (count - 1))]];
  });
  return shares.map((placed) => Uint8ClampedArray.from(placed, (value, p) => {
    const [low, high] = ends[p % 3];
    return high - low > 1e-9 ? (255 * (value - low)) / (high - low) : 128;
  }));
}

/* The leading eigenvectors of a symmetric, positive matrix (width x width), by subspace iteration with some vectors to
spare; the largest entry of each is positive. Fewer where the matrix is smaller. */
function leadingAxes(matrix, width, wanted) {
  const size = Math.min(width, wanted + 5);
  let vectors = Array.from({ length: size }, (_, v) => Float64Array.from({ length: width }, (_, d) => (d === v ? 1 : 0) + 0.01 * Math.sin(1 + d * (v + 1))));
  const times = (vector) => {
    const result = new Float64Array(width);
    for (let d = 0, p = 0; d < width; d++, p += width) {
      let dot = 0;
      for (let e = 0; e < width; e++) dot += matrix[p + e] * vector[e];
      result[d] = dot;
    }
    return result;
  };
  const inner = (one, other) => one.reduce((sum, value, d) => sum + value * other[d], 0);
  for (let round = 0; round < 200; round++) {
    const before = vectors;
    vectors = [];
    for (const vector of before.map(times)) {
      for (const done of vectors) {
        const along = inner(vector, done);
        for (let d = 0; d < width; d++) vector[d] -= along * done[d];
      }
      const length = Math.sqrt(inner(vector, vector));
      vectors.push(length > 1e-12 ? vector.map((value) => value / length) : vector.fill(0));
    }
    if (round > 2 && vectors.slice(0, wanted).every((vector, v) => Math.abs(inner(vector, before[v])) > 1 - 1e-12 || !inner(vector, vector))) break;
  }
  return vectors.slice(0, wanted).map((vector) => {
    const largest = vector.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
    return largest < 0 ? vector.map((value) => -value) : vector;
  });
}

/* Range and mean of the similarities, and the share above 0.8; the chosen patch itself is left out. */
function summary(similarity, patch) {
  let total = 0, minimum = Infinity, maximum = -Infinity, above = 0;
  for (let i = 0; i < similarity.length; i++) {
    if (i === patch) continue;
    const value = similarity[i];
    total += value;
    if (value < minimum) minimum = value;
    if (value > maximum) maximum = value;
    if (value > 0.8) above++;
  }
  const others = similarity.length - (patch < 0 ? 0 : 1); // a patch of another image is none of these: -1
  return others ? { minimum, mean: total / others, maximum, above: above / others }
    : { minimum: 1, mean: 1, maximum: 1, above: 0 };
}

/* Which ninth of the image is most similar to the chosen patch, which is left out: its name and mean similarity. */
function mostAlike(similarity, [h, w], patch) {
  const sums = new Float64Array(9), counts = new Float64Array(9);
  for (let i = 0; i < similarity.length; i++) {
    if (i === patch) continue;
    const cell = 3 * Math.floor((3 * Math.floor(i / w)) / h) + Math.floor((3 * (i % w)) / w);
    sums[cell] += similarity[i];
    counts[cell]++;
  }
  let best = -1;
  for (let cell = 0; cell < 9; cell++)
    if (counts[cell] && (best < 0 || sums[cell] / counts[cell] > sums[best] / counts[best])) best = cell;
  return best < 0 ? null : { name: REGIONS[Math.floor(best / 3)][best % 3], mean: sums[best] / counts[best] };
}

function nearest(steps, wanted) {
  let best = 0;
  steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = i; });
  return best;
}
