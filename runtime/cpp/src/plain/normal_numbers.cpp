// Normal numbers of a seed, bit by bit as docs/bundle.md, "The noise of a seed", says: Philox4x64-10 (Salmon et al.,
// 2011) and Algorithm AS 241 (Wichura, 1988), in float64 arithmetic of + - * / and square roots, each rounded by
// itself.
#include <array>
#include <cmath>

#include "starflow/starflow.hpp"

namespace starflow {
namespace {

using Words = std::array<std::uint64_t, 4>;

struct Product {
  std::uint64_t high, low;
};

Product multiply(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t a0 = a & 0xffffffffU, a1 = a >> 32, b0 = b & 0xffffffffU, b1 = b >> 32;
  const std::uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (middle & 0xffffffffU);
  return {a1 * b1 + (middle >> 32) + (other >> 32), a * b};
}

Words philox(std::uint64_t counter, std::uint64_t key0, std::uint64_t key1) {
  Words x{counter, 0, 0, 0};
  for (int round = 0; round < 10; ++round) {
    const Product first = multiply(0xD2E7470EE14C6C93U, x[0]), second = multiply(0xCA5A826395121157U, x[2]);
    x = {second.high ^ x[1] ^ key0, second.low, first.high ^ x[3] ^ key1, first.low};
    key0 += 0x9E3779B97F4A7C15U;
    key1 += 0xBB67AE8584CAA73BU;
  }
  return x;
}

// AS 241, PPND16: coefficients of numerators and denominators, the constant term last.
using Coefficients = std::array<double, 8>;
constexpr Coefficients A{2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
                         4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
                         1.3314166789178437745e2, 3.3871328727963666080e0};
constexpr Coefficients B{
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0};
constexpr Coefficients C{7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
                         1.27045825245236838258e0,  3.64784832476320460504e0,  5.76949722146069140550e0,
                         4.63033784615654529590e0,  1.42343711074968357734e0};
constexpr Coefficients D{
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0,  2.05319162663775882187e0,  1.0};
constexpr Coefficients E{2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
                         2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
                         5.46378491116411436990e0,  6.65790464350110377720e0};
constexpr Coefficients F{
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2,  1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0};

template <std::size_t count>
double polynomial(double x, const std::array<double, count>& coefficients) {
  double value = coefficients[0];
  for (std::size_t index = 1; index < count; ++index) value = value * x + coefficients[index];
  return value;
}

double logarithm(double x) {
  constexpr std::array<double, 11> series{
      1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
      1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};  // artanh(s) / s in powers of s^2
  int e = 0;
  double m = std::frexp(x, &e);
  if (m < 0.7071067811865476) {
    m *= 2;
    e -= 1;
  }
  const double s = (m - 1) / (m + 1);
  return e * 0.6931471805599453 + 2 * s * polynomial(s * s, series);
}

double inverse_normal(double u) {
  const double q = u - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return polynomial(r, A) / polynomial(r, B) * q;
  }
  const double r = std::sqrt(-logarithm(std::fmin(u, 1 - u)));
  const double x =
      r <= 5 ? polynomial(r - 1.6, C) / polynomial(r - 1.6, D) : polynomial(r - 5, E) / polynomial(r - 5, F);
  return q < 0 ? -x : x;
}

}  // namespace

void normal_numbers(std::uint64_t seed, std::uint64_t image, std::size_t count, float* numbers) {
  Words words{};
  for (std::size_t index = 0; index < count; ++index) {
    if (index % 4 == 0) words = philox(index / 4 + 1, seed, image);
    const double u = (static_cast<double>(words[index % 4] >> 12) + 0.5) * 0x1p-52;
    numbers[index] = static_cast<float>(inverse_normal(u));
  }
}

}  // namespace starflow
