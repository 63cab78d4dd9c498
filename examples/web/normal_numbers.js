// Normal numbers of a seed, bit by bit those of Python and C++: "The noise of a seed" in docs/bundle.md.

const MASK = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const BUMPS = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];

// AS 241, PPND16: numerators and denominators, the constant term last.
const CENTRE = [
  [2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0],
  [5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0],
];
const SIDES = [
  [7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
    3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0],
  [1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0],
];
const TAILS = [
  [2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
    2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0],
  [2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0],
];
const LOG_2 = 0.6931471805599453;
const ROOT_HALF = 0.7071067811865476;
const SERIES = Array.from({ length: 11 }, (_, index) => 1 / (2 * (10 - index) + 1));

function philox(counter, seed, image) {
  let words = [counter, 0n, 0n, 0n];
  let keys = [seed, image];
  for (let round = 0; round < 10; round++) {
    if (round > 0) keys = keys.map((key, index) => (key + BUMPS[index]) & MASK);
    const [low, high] = [words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]];
    words = [(high >> 64n) ^ words[1] ^ keys[0], high & MASK, (low >> 64n) ^ words[3] ^ keys[1], low & MASK];
  }
  return words;
}

const polynomial = (x, coefficients) => coefficients.reduce((value, coefficient) => value * x + coefficient);
const ratio = (r, [numerator, denominator]) => polynomial(r, numerator) / polynomial(r, denominator);

function logarithm(x) {
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, x);
  let exponent = ((bits.getUint32(0) >>> 20) & 0x7ff) - 1022;
  let m = x / 2 ** exponent; // from 1/2 to 1
  if (m < ROOT_HALF) [m, exponent] = [m * 2, exponent - 1];
  const s = (m - 1) / (m + 1);
  return exponent * LOG_2 + 2 * s * polynomial(s * s, SERIES);
}

function inverseNormal(u) {
  const q = u - 0.5;
  if (Math.abs(q) <= 0.425) return ratio(0.180625 - q * q, CENTRE) * q;
  const r = Math.sqrt(-logarithm(Math.min(u, 1 - u)));
  const far = r <= 5 ? ratio(r - 1.6, SIDES) : ratio(r - 5, TAILS);
  return q < 0 ? -far : far;
}

/** The first `count` numbers of an image of a seed, a Float32Array. */
export function normalNumbers(seed, image, count) {
  const numbers = new Float32Array(count);
  for (let index = 0; index < count; index += 4) {
    philox(BigInt(index / 4 + 1), BigInt(seed), BigInt(image)).forEach((word, place) => {
      if (index + place < count) numbers[index + place] = inverseNormal((Number(word >> 12n) + 0.5) * 2 ** -52);
    });
  }
  return numbers;
}
