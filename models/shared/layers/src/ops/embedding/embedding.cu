FUNCTION bool is_row(i64 id, uint rows) {
    return id >= 0 && id < rows;
}

// A group a token: its row of the table (NaN if there is none), its place's row, dropout.
KERNEL(embedding_forward, READ(i64, ids, 0), READ(T, table, 1), READ(T, positions, 2), WRITE(T, y, 3),
       VALUE(uint, rows, 4), VALUE(uint, width, 5), VALUE(uint, time, 6), VALUE(uint, first, 7),
       VALUE(uint, with_positions, 8), VALUE(uint, threshold, 9), VALUE(float, scale, 10), VALUE(uint, step0, 11),
       VALUE(uint, step1, 12), VALUE(uint, key0, 13), VALUE(uint, key1, 14)) {
    const uint token = GROUP.x, row = (uint)ids[token], place = first + token % time;
    const bool found = is_row(ids[token], rows);
    for (uint i = THREAD; i < width; i += THREADS) {
        float v = found ? float(table[row * width + i]) : NAN;
        if (with_positions)
            v += float(positions[place * width + i]);
        if (threshold > 0)
            v = kept(token * width + i, threshold, step0, step1, key0, key1) ? v * scale : 0;
        y[token * width + i] = T(v);
    }
}

// For each token the next one with the same id (or n), and whether none came before.
KERNEL(embedding_chains, READ(i64, ids, 0), WRITE(i64, next, 1), WRITE(i64, starts, 2), VALUE(uint, n, 3)) {
    const uint token = GROUP.x * THREADS + THREAD;
    if (token >= n)
        return;
    const i64 id = ids[token];
    uint after = token + 1, before = token;
    while (after < n && ids[after] != id)
        after++;
    while (before > 0 && ids[before - 1] != id)
        before--;
    next[token] = after;
    starts[token] = before == 0;
}

// A group a token: if it is the first of its id, the sum over all of them, in their order.
KERNEL(embedding_backward, READ(i64, ids, 0), READ(T, dy, 1), READ(i64, next, 2), READ(i64, starts, 3),
       WRITE(T, dtable, 4), VALUE(uint, rows, 5), VALUE(uint, n, 6), VALUE(uint, width, 7)) {
    const uint token = GROUP.x;
    if (starts[token] == 0 || !is_row(ids[token], rows))
        return;
    const uint row = (uint)ids[token];
    for (uint i = THREAD; i < width; i += THREADS) {
        float sum = 0;
        for (uint at = token; at < n; at = (uint)next[at])
            sum += float(dy[at * width + i]);
        dtable[row * width + i] = T(sum);
    }
}

// A group a place: the sum over the batch.
KERNEL(embedding_positions, READ(T, dy, 0), WRITE(T, dpositions, 1), VALUE(uint, batch, 2), VALUE(uint, time, 3),
       VALUE(uint, first, 4), VALUE(uint, width, 5)) {
    const uint place = GROUP.x;
    for (uint i = THREAD; i < width; i += THREADS) {
        float sum = 0;
        for (uint b = 0; b < batch && place >= first && place < first + time; b++)
            sum += float(dy[(b * time + place - first) * width + i]);
        dpositions[place * width + i] = T(sum);
    }
}
