// Runs kernels on the CPU: each thread of a group is a fiber of its own, and stops at barriers. Shared memory starts as
// NaN. What it cannot show: address spaces, attributes, alignment, races that need two threads at the same instant.

#include <array>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

typedef unsigned int uint;
typedef long long i64;
#if defined(__aarch64__) && defined(__GNUC__) && __GNUC__ < 13
typedef __fp16 f16; // g++ has _Float16 there since 13.
#else
typedef _Float16 f16;
#endif
using std::isfinite;
using std::isinf;
using std::isnan;

struct uint3 {
    uint x, y, z;
};

struct uint4 {
    uint x, y, z, w;
};

// The upper half of a float, rounded to the nearest.
struct bf16 {
    uint16_t bits;
    bf16() = default;
    explicit bf16(float v) {
        uint32_t b;
        memcpy(&b, &v, 4);
        bits = v != v ? 0x7fc0 : (b + 0x7fff + (b >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t b = (uint32_t)bits << 16;
        float v;
        memcpy(&v, &b, 4);
        return v;
    }
};

namespace zoo {
enum State { RUNS, AT_LANES, AT_GROUP, DONE };

// Runs one kernel after another. It is entered by ucontext and left and taken up by longjmp, which asks nothing of the system.
struct Fiber {
    std::vector<char> stack;
    jmp_buf place;
    bool entered;
    State state;
};

struct Machine {
    std::vector<std::vector<char>> shared;
    std::vector<float> slots;
    // What each thread shows the others of its lanes.
    std::vector<std::array<uint, 6>> words;
    std::vector<const void *> rows;
    uint thread, threads;
    uint3 group;
    void (*kernel)(void **);
    void **args;
};

inline thread_local Machine *machine;
// Kept from launch to launch.
inline thread_local std::vector<Fiber> fibers;
inline thread_local jmp_buf home;

// Not inline, so that no variable of a kernel lives in the frame that is jumped from.
__attribute__((noinline)) inline void stop(State state) {
    Fiber &fiber = fibers[machine->thread];
    fiber.state = state;
    if (_setjmp(fiber.place) == 0)
        _longjmp(home, 1);
}

inline void entry() {
    for (;;) {
        machine->kernel(machine->args);
        stop(DONE);
    }
}

// Until it stops.
__attribute__((noinline)) inline void resume(Fiber &fiber) {
    if (_setjmp(home) != 0)
        return;
    if (fiber.entered)
        _longjmp(fiber.place, 1);
    fiber.entered = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = fiber.stack.size();
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
    setcontext(&context);
}

inline float shuffle(float v, uint mask) {
    const uint self = machine->thread;
    machine->slots[self] = v;
    stop(AT_LANES);
    const float other = machine->slots[self ^ mask];
    stop(AT_LANES);
    return other;
}

// The functions of dialect.h, as the PTX ISA lays out their matrices.
template <class T> void load_matrices(uint *words, const T *row, bool transposed) {
    const uint self = machine->thread, first = self / 32 * 32, g = self % 32 / 4, t = self % 4 * 2;
    machine->rows[self] = row;
    stop(AT_LANES);
    for (uint m = 0; m < 4; m++)
        for (uint next = 0; next < 2; next++) {
            const uint r = transposed ? t + next : g, column = transposed ? g : t + next;
            const T *of = static_cast<const T *>(machine->rows[first + 8 * m + r]);
            memcpy(reinterpret_cast<char *>(words + m) + 2 * next, of + column, 2);
        }
    stop(AT_LANES);
}

template <class T> void multiply(float *c, const uint *a, uint b0, uint b1) {
    const uint self = machine->thread, first = self / 32 * 32;
    machine->words[self] = {a[0], a[1], a[2], a[3], b0, b1};
    stop(AT_LANES);
    const auto element = [first](uint lane, uint word, uint next) {
        T v;
        memcpy(&v, reinterpret_cast<const char *>(&machine->words[first + lane][word]) + 2 * next, 2);
        return float(v);
    };
    for (uint i = 0; i < 4; i++) {
        const uint row = self % 32 / 4 + i / 2 * 8, column = self % 4 * 2 + i % 2;
        for (uint k = 0; k < 16; k++)
            c[i] += element(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2) *
                    element(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    }
    stop(AT_LANES);
}

inline void *shared(size_t bytes, size_t id) {
    auto &all = machine->shared;
    if (all.size() <= id)
        all.resize(id + 1);
    if (all[id].empty())
        all[id].assign(bytes, (char)0xff);
    return all[id].data();
}

// All fibers, until each is done; false if some wait for others that never come.
inline bool run_group(bool backwards) {
    Machine &m = *machine;
    if (fibers.size() < m.threads)
        fibers.resize(m.threads, Fiber{std::vector<char>(64 * 1024), {}, false, DONE});
    for (uint i = 0; i < m.threads; i++)
        fibers[i].state = RUNS;
    for (;;) {
        uint done = 0, at_group = 0, ran = 0;
        for (uint i = 0; i < m.threads; i++) {
            m.thread = backwards ? m.threads - 1 - i : i;
            Fiber &fiber = fibers[m.thread];
            if (fiber.state == RUNS) {
                resume(fiber);
                ran++;
            }
            done += fiber.state == DONE;
            at_group += fiber.state == AT_GROUP;
        }
        if (done == m.threads)
            return true;
        uint released = at_group == m.threads ? m.threads : 0;
        for (uint i = 0; i < released; i++)
            fibers[i].state = RUNS;
        for (uint first = 0; first < m.threads; first += 32) {
            uint at_lanes = 0;
            for (uint i = first; i < first + 32; i++)
                at_lanes += fibers[i].state == AT_LANES;
            for (uint i = first; at_lanes == 32 && i < first + 32; i++, released++)
                fibers[i].state = RUNS;
        }
        if (ran == 0 && released == 0) {
            // What they are in the middle of is never finished.
            fibers.clear();
            return false;
        }
    }
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A> *>(args[I])...);
}
} // namespace zoo

extern "C" int zoo_launch(void (*kernel)(void **), void **args, const uint *groups, uint threads, int backwards) {
    zoo::Machine machine;
    zoo::machine = &machine;
    machine.kernel = kernel;
    machine.args = args;
    machine.threads = threads;
    machine.slots.resize(threads);
    machine.words.resize(threads);
    machine.rows.resize(threads);
    for (uint z = 0; z < groups[2]; z++)
        for (uint y = 0; y < groups[1]; y++)
            for (uint x = 0; x < groups[0]; x++) {
                machine.group = {x, y, z};
                machine.shared.clear();
                if (!zoo::run_group(backwards))
                    return 1;
            }
    return 0;
}

#define KERNEL(name, ...)                                                                                              \
    static void name##_body(__VA_ARGS__);                                                                              \
    template <class... A> static void name##_call(void (*kernel)(A...), void **args) {                                 \
        zoo::call(kernel, args, std::index_sequence_for<A...>());                                                      \
    }                                                                                                                  \
    extern "C" void name(void **args) { name##_call(name##_body, args); }                                              \
    static void name##_body(__VA_ARGS__)
#define READ(type, name, at) const type *name
#define WRITE(type, name, at) type *name
#define VALUE(type, name, at) const type name
#define SHARED(type, name, size) type *name = static_cast<type *>(zoo::shared(sizeof(type) * (size), __COUNTER__))
#define SHARED_POINTER(type) type *
#define READ_POINTER(type) const type *
#define WRITE_POINTER(type) type *
#define LOCAL_POINTER(type) type *
#define FUNCTION static inline
#define THREAD zoo::machine->thread
#define THREADS zoo::machine->threads
#define GROUP zoo::machine->group
#define BARRIER() zoo::stop(zoo::AT_GROUP)
#define SHUFFLE_XOR(v, mask, self) zoo::shuffle(v, mask)
#define MUL_HI(a, b) (uint)((uint64_t)(a) * (b) >> 32)
#define MATH(function) std::function

// Words of Metal's that mean nothing in C++.
#pragma GCC poison thread threadgroup device constant kernel vertex fragment half bfloat sampler
