// A thread a pair: features i and i + d/2, or 2i and 2i + 1; `sign` is -1 for the opposite angles.
KERNEL(rope, READ(T, x, 0), READ(T, cosines, 1), READ(T, sines, 2), WRITE(T, y, 3), VALUE(uint, pairs, 4),
       VALUE(uint, half_width, 5), VALUE(uint, places, 6), VALUE(uint, heads, 7), VALUE(uint, neighbours, 8),
       VALUE(float, sign, 9)) {
    const uint pair = GROUP.x * THREADS + THREAD;
    if (pair >= pairs)
        return;
    const uint row = pair / half_width, i = pair % half_width;
    const uint at = 2 * row * half_width + (neighbours ? 2 * i : i), other = at + (neighbours ? 1 : half_width);
    const uint angle = row / heads % places * half_width + i;
    const float a = float(x[at]), b = float(x[other]);
    const float c = float(cosines[angle]), s = sign * float(sines[angle]);
    y[at] = T(a * c - b * s);
    y[other] = T(b * c + a * s);
}
