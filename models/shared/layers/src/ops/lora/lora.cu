// y = scale y + added, where there are so many.

KERNEL(lora_blend, WRITE(T, y, 0), READ(T, added, 1), VALUE(uint, n, 2), VALUE(uint, count, 3), VALUE(float, scale, 4)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        y[i] = T(float(y[i]) * scale + (i < count ? float(added[i]) : 0));
}
