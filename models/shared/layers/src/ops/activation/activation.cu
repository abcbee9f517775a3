// The functions of mod.rs and their slopes, each element by its own thread.

#define IDENTITY 0
#define RELU 1
#define GELU 2
#define GELU_TANH 3
#define SILU 4
#define ELU 5

struct Point {
    float y, slope;
};

// As the CPU's `vector::normal`: Φ(-a) is e^(-a²/2) times a polynomial in 1 / (1 + 0.21 a).
FUNCTION Point gelu(float x) {
    const float a = x < 0 ? -x : x;
    const float density = MATH(exp)(a * a * -0.5f);
    const float t = 1 / (0.21f * a + 1);
    float p = -0.07165628f;
    p = p * t + 0.2835884f;
    p = p * t - 0.3302531f;
    p = p * t + 0.3494007f;
    p = p * t - 0.09392499f;
    p = p * t + 0.12487264f;
    p = p * t + 0.06919219f;
    p = p * t + 0.08506871f;
    p = p * t + 0.08371158f;
    const float tail = density * (p * t);
    const float below = x > 0 ? 1 - tail : tail;
    const Point point = {x * below, x * (density * 0.3989423f) + below};
    return point;
}

// (1 + tanh u)/2 = σ(2u) and (1 - tanh² u)/4 = σ(2u) σ(-2u).
FUNCTION Point gelu_tanh(float x) {
    const float root = 0.7978846f; // √(2/π)
    const float x2 = x * x;
    const float u2 = x * (2 * root) * (0.044715f * x2 + 1);
    const float power = MATH(exp)(u2 < 0 ? u2 : -u2);
    const float large = 1 / (1 + power), small = power * large;
    const float share = u2 > 0 ? large : small;
    const float rise = 2 * root * (0.134145f * x2 + 1);
    // Where x³ overflows the slope of the share is 0.
    const Point point = {x * share, small > 0 ? large * small * x * rise + share : share};
    return point;
}

FUNCTION Point silu(float x) {
    const float power = MATH(exp)(x < 0 ? x : -x);
    const float share = x < 0 ? power / (1 + power) : 1 / (1 + power);
    const Point point = {x * share, share * (x * (1 - share) + 1)};
    return point;
}

FUNCTION Point elu(float x, float alpha) {
    // eˣ - 1 = 2 tanh(x/2) / (1 - tanh(x/2)), which is exact near zero too.
    const float h = MATH(tanh)(x / 2);
    const float y = alpha * (x > -20 ? 2 * h / (1 - h) : -1);
    const Point below = {y, y + alpha}, above = {x, 1};
    return x > 0 ? above : below;
}

FUNCTION Point point(float x, uint kind, float alpha) {
    switch (kind) {
    case GELU:
        return gelu(x);
    case GELU_TANH:
        return gelu_tanh(x);
    case SILU:
        return silu(x);
    case ELU:
        return elu(x, alpha);
    case IDENTITY: {
        const Point same = {x, 1};
        return same;
    }
    default:
        const Point relu = {x < 0 ? 0 : x, x <= 0 ? 0.f : 1.f};
        return relu;
    }
}

KERNEL(activation_forward, READ(T, x, 0), WRITE(T, y, 1), VALUE(uint, n, 2), VALUE(uint, kind, 3),
       VALUE(float, alpha, 4)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        y[i] = T(point(float(x[i]), kind, alpha).y);
}

KERNEL(activation_backward, READ(T, x, 0), READ(T, dy, 1), WRITE(T, dx, 2), VALUE(uint, n, 3), VALUE(uint, kind, 4),
       VALUE(float, alpha, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        dx[i] = T(float(dy[i]) * point(float(x[i]), kind, alpha).slope);
}

// z += bias, and y = f(z).
KERNEL(activation_of_sum, WRITE(T, z, 0), READ(T, bias, 1), WRITE(T, y, 2), VALUE(uint, n, 3), VALUE(uint, width, 4),
       VALUE(uint, biased, 5), VALUE(uint, kind, 6), VALUE(float, alpha, 7)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const T sum = T(float(z[i]) + (biased ? float(bias[i % width]) : 0));
    z[i] = sum;
    y[i] = T(point(float(sum), kind, alpha).y);
}

// y = f(gate) up.
KERNEL(gated_forward, READ(T, gate, 0), READ(T, up, 1), WRITE(T, y, 2), VALUE(uint, n, 3), VALUE(uint, kind, 4),
       VALUE(float, alpha, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        y[i] = T(point(float(gate[i]), kind, alpha).y * float(up[i]));
}

KERNEL(gated_backward, READ(T, gate, 0), READ(T, up, 1), READ(T, dy, 2), WRITE(T, dgate, 3), WRITE(T, dup, 4),
       VALUE(uint, n, 5), VALUE(uint, kind, 6), VALUE(float, alpha, 7)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const Point of = point(float(gate[i]), kind, alpha);
    dgate[i] = T(float(dy[i]) * float(up[i]) * of.slope);
    dup[i] = T(float(dy[i]) * of.y);
}
