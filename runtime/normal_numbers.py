"""Normal numbers of a seed, bit by bit the same in every language and on every processor: `docs/bundle.md`, "The noise of a seed".

Uniform numbers come from Philox4x64-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), which is a function of
a key and a counter. They become normal by the inverse of the distribution function (Wichura, Algorithm AS 241, Applied Statistics
37, 1988), in float64 arithmetic of +, -, *, / and square roots alone, each rounded as IEEE 754 says: libraries of mathematics
differ in the last bits of a logarithm, so it is spelled out here.
"""

import numpy as np
from numpy.typing import NDArray

MOST_SEED = 2**64 - 1

# AS 241, PPND16: the coefficients of numerators and denominators, the constant term last.
CENTRE = (
    (
        2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
        1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
        5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
    ),
)  # fmt: skip
SIDES = (
    (
        7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
        3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
        6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0,
    ),
)  # fmt: skip
TAILS = (
    (
        2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
        2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
        1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0,
    ),
)  # fmt: skip
LOG_2 = 0.6931471805599453
ROOT_HALF = 0.7071067811865476
SERIES = tuple(1 / (2 * k + 1) for k in range(10, -1, -1))  # artanh(s) / s in powers of s^2


def normal_numbers(seed: int, image: int, count: int) -> NDArray[np.float32]:
    """The first `count` standard normal numbers of an image of a seed, each at most `MOST_SEED`; float32 [count]."""
    words = np.random.Philox(key=np.array([seed, image], np.uint64)).random_raw(count)
    u = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return inverse_normal(u).astype(np.float32)


def inverse_normal(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers that a standard normal number stays below with probability u, 0 < u < 1 (AS 241)."""
    q = u - 0.5
    x = _ratio(0.180625 - q * q, *CENTRE) * q
    outer = np.flatnonzero(np.abs(q) > 0.425)
    r = np.sqrt(-_logarithm(np.minimum(u, 1 - u)[outer]))
    far = np.where(r <= 5, _ratio(r - 1.6, *SIDES), _ratio(r - 5, *TAILS))
    x[outer] = np.where(q[outer] < 0, -far, far)
    return x


def _logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(m 2^e) = e log 2 + 2 artanh((m - 1) / (m + 1)), with m between the square roots of 1/2 and 2."""
    m, e = np.frexp(x)
    low = m < ROOT_HALF
    m, e = np.where(low, m * 2, m), np.where(low, e - 1, e)
    s = (m - 1) / (m + 1)
    return e * LOG_2 + 2 * s * _polynomial(s * s, SERIES)


def _ratio(r: NDArray[np.float64], numerator: tuple[float, ...], denominator: tuple[float, ...]) -> NDArray[np.float64]:
    return _polynomial(r, numerator) / _polynomial(r, denominator)


def _polynomial(x: NDArray[np.float64], coefficients: tuple[float, ...]) -> NDArray[np.float64]:
    """By Horner's rule, whose products and sums are rounded one by one (no fused multiply-add)."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
