// NVIDIA's driver, cuBLAS and cuRAND without a GPU, for what zoo calls of them: memory is the machine's own, kernels are looked
// up in the PTX of their module and then not run, products are not computed. So all of zoo's own side of a GPU runs: what a
// step launches, copies, waits for and allocates can be counted, and what it costs the processor measured (`calls.sh`).
// At the end the calls are written to the file that ZOO_CALLS names, as "COUNT NAME".

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_RANGE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 101, NOT_FOUND = 500 };

typedef struct Counter {
    const char *name;
    atomic_long count;
    struct Counter *next;
} Counter;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Counter *counters;
static long used, peak;

static void write_calls(void) {
    const char *path = getenv("ZOO_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (Counter *c = counters; c; c = c->next) fprintf(file, "%ld %s\n", (long)c->count, c->name);
    fprintf(file, "%ld bytes at most\n", peak);
    fclose(file);
}

static void count(Counter *counter) {
    if (atomic_fetch_add(&counter->count, 1)) return;
    pthread_mutex_lock(&lock);
    if (!counters) atexit(write_calls);
    counter->next = counters;
    counters = counter;
    pthread_mutex_unlock(&lock);
}

#define COUNT(what)                            \
    do {                                       \
        static Counter counter = {.name = what}; \
        count(&counter);                       \
    } while (0)

// A call that has nothing to do here.
#define NOTHING(name) int name(void) { COUNT(#name); return OK; }
NOTHING(cuInit) NOTHING(cuCtxSetCurrent) NOTHING(cuCtxDestroy_v2) NOTHING(cuDevicePrimaryCtxRelease_v2)
NOTHING(cuEventDestroy_v2) NOTHING(cuEventRecord) NOTHING(cuStreamDestroy_v2) NOTHING(cuStreamSynchronize)
NOTHING(cuStreamWaitEvent) NOTHING(cuCtxSynchronize) NOTHING(cuModuleUnload) NOTHING(cublasDestroy_v2) NOTHING(cublasSetStream_v2)
NOTHING(cublasGemmStridedBatchedEx) NOTHING(cublasDgemmStridedBatched) NOTHING(curandDestroyGenerator)
NOTHING(curandSetPseudoRandomGeneratorSeed) NOTHING(curandSetStream)
// Nothing is ever written: all that a program reads back is zero.
NOTHING(cuMemsetD8Async) NOTHING(cuMemcpyDtoDAsync_v2) NOTHING(cuMemcpyHtoDAsync_v2) NOTHING(cuMemcpyPeerAsync)

static int opaque;
#define HANDLE(name) int name(void **handle) { COUNT(#name); *handle = &opaque; return OK; }
HANDLE(cublasCreate_v2) HANDLE(curandCreateGenerator) HANDLE(cuCtxGetCurrent) HANDLE(cuDevicePrimaryCtxRetain)
HANDLE(cuStreamCreate) HANDLE(cuEventCreate)

int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? NO_DEVICE : OK; }
int cuStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return OK; }
int cuGetErrorString(int error, const char **text) { (void)error; *text = "not possible here"; return OK; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    // Threads of a group, processors, compute capability, memory pools: an H100's.
    *value = attribute == 1 ? 1024 : attribute == 16 ? 132 : attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 115;
    return OK;
}

// Blocks of 2ⁿ bytes are used again, so that new ones cost no time.
typedef struct Block {
    struct Block *next;
    size_t bytes;
    int power;
    char room[44];
} Block;
static Block *unused[64];

int cuMemAllocAsync(void **pointer, size_t bytes, void *stream) {
    (void)stream;
    COUNT("cuMemAllocAsync");
    int power = 6;
    while (((size_t)1 << power) < bytes) power++;
    pthread_mutex_lock(&lock);
    Block *block = unused[power];
    if (block) unused[power] = block->next;
    else block = calloc(1, sizeof(Block) + ((size_t)1 << power));
    if (block) {
        block->bytes = bytes, block->power = power;
        used += bytes;
        if (used > peak) peak = used;
    }
    pthread_mutex_unlock(&lock);
    *pointer = block ? block + 1 : NULL;
    return block ? OK : OUT_OF_MEMORY;
}

int cuMemFreeAsync(void *pointer, void *stream) {
    (void)stream;
    COUNT("cuMemFreeAsync");
    Block *block = (Block *)pointer - 1;
    pthread_mutex_lock(&lock);
    used -= block->bytes;
    block->next = unused[block->power];
    unused[block->power] = block;
    pthread_mutex_unlock(&lock);
    return OK;
}

int cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = &opaque; return device ? NO_DEVICE : OK; }

// Both are called for the most bytes in use alone.
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    (void)pool, (void)attribute, (void)value;
    peak = used;
    return OK;
}
int cuMemPoolGetAttribute(void *pool, int attribute, void *value) {
    (void)pool, (void)attribute;
    *(uint64_t *)value = (uint64_t)peak;
    return OK;
}

int cuMemAlloc_v2(void **pointer, size_t bytes) { return cuMemAllocAsync(pointer, bytes, NULL); }
int cuMemFree_v2(void *pointer) { return cuMemFreeAsync(pointer, NULL); }

int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes) {
    COUNT("cuMemcpyDtoHAsync_v2");
    memcpy(to, from, bytes);
    return OK;
}

typedef struct Function {
    Counter launches;
    char label[160];
    struct Function *next;
} Function;

typedef struct {
    char *text;
    Function *functions;
} Module;

int cuModuleLoadData(Module **module, const char *image) {
    COUNT("cuModuleLoadData");
    *module = calloc(1, sizeof(Module));
    if (!*module || !((*module)->text = strdup(image))) return OUT_OF_MEMORY;
    return OK;
}

int cuModuleLoad(void **module, const char *path) { (void)path; *module = NULL; return NOT_FOUND; }

int cuModuleGetFunction(Function **function, Module *module, const char *name) {
    COUNT("cuModuleGetFunction");
    pthread_mutex_lock(&lock);
    Function *found = module->functions;
    while (found && strcmp(found->label + 7, name)) found = found->next;
    if (!found) {
        char entry[200];
        snprintf(entry, sizeof entry, ".entry %s(", name);
        if (strstr(module->text, entry) && (found = calloc(1, sizeof(Function)))) {
            snprintf(found->label, sizeof found->label, "kernel %s", name);
            found->launches.name = found->label;
            found->next = module->functions;
            module->functions = found;
        } else {
            fprintf(stderr, "no kernel %s in its module\n", name);
        }
    }
    pthread_mutex_unlock(&lock);
    *function = found;
    return found ? OK : NOT_FOUND;
}

int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned tx, unsigned ty, unsigned tz) {
    COUNT("cuLaunchKernel");
    count(&function->launches);
    int fits = gx && gy && gz && tx && ty && tz && gx < 1u << 31 && gy < 65536 && gz < 65536 && tx * ty * tz <= 1024;
    if (!fits) fprintf(stderr, "%s: %u x %u x %u groups of %u x %u x %u threads\n", function->label, gx, gy, gz, tx, ty, tz);
    return fits ? OK : OUT_OF_RANGE;
}
