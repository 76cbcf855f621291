/* A stand-in for libnvidia-ml.so.1 that answers from a text file, named by NVML_STUB.

   One fact per line, "key value":
     init ok|hang|crash|ERROR     what nvmlInit does; ERROR is a number of nvmlReturn_t
     driver VERSION
     device NAME                  starts a device;  instance NAME  starts a MIG instance of it
     uuid TEXT   cc MAJOR MINOR   ecc 0|1   mig 0|1   cores N
     memory TOTAL FREE            bytes;  memory hang|crash|ERROR  behaves like init
   A fact that is not given is NOT_SUPPORTED, as with the real library. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, UNKNOWN = 999, MAX = 16 };

typedef struct node {
    char name[96], uuid[96], memory[64];
    int major, minor, ecc, mig, cores, n_instances;
    unsigned long long total, free;
    struct node *instances[MAX];
} node;

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int cores, other[7]; unsigned long long memory_mb; } attributes_t;

static node *devices[MAX];
static int n_devices;
static char driver[96], init[64] = "ok";

static int behave(const char *word) {
    if (!strcmp(word, "hang")) for (;;) pause();
    if (!strcmp(word, "crash")) raise(SIGSEGV);
    return strcmp(word, "ok") ? atoi(word) : SUCCESS;
}

static node *fresh(const char *name) {
    node *n = calloc(1, sizeof *n);
    snprintf(n->name, sizeof n->name, "%s", name);
    n->major = n->ecc = n->mig = n->cores = -1;
    return n;
}

static void load(void) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], key[32], value[200];
    node *device = NULL, *now = NULL;
    n_devices = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (line[0] == '#' || sscanf(line, "%31s %199[^\n]", key, value) != 2) continue;
        if (!strcmp(key, "init")) snprintf(init, sizeof init, "%.60s", value);
        else if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%.90s", value);
        else if (!strcmp(key, "device")) devices[n_devices++] = device = now = fresh(value);
        else if (!strcmp(key, "instance")) device->instances[device->n_instances++] = now = fresh(value);
        else if (!strcmp(key, "uuid")) snprintf(now->uuid, sizeof now->uuid, "%.90s", value);
        else if (!strcmp(key, "cc")) sscanf(value, "%d %d", &now->major, &now->minor);
        else if (!strcmp(key, "ecc")) now->ecc = atoi(value);
        else if (!strcmp(key, "mig")) now->mig = atoi(value);
        else if (!strcmp(key, "cores")) now->cores = atoi(value);
        else if (!strcmp(key, "memory") && sscanf(value, "%llu %llu", &now->total, &now->free) != 2)
            snprintf(now->memory, sizeof now->memory, "%.60s", value);
    }
    if (file) fclose(file);
}

static int text(const char *from, char *to, unsigned int room) {
    if (!from[0]) return NOT_SUPPORTED;
    snprintf(to, room, "%s", from);
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    return code == NOT_SUPPORTED ? "Not Supported" : code == 9 ? "Driver Not Loaded"
         : code == 15 ? "GPU is lost" : code == 18 ? "Driver/library version mismatch" : "Unknown Error";
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; load(); return behave(init); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *to, unsigned int room) { return text(driver, to, room); }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = (unsigned)n_devices; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, node **to) {
    if (index >= (unsigned)n_devices) return NOT_FOUND;
    *to = devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(node *n, char *to, unsigned int room) { return text(n->name, to, room); }
int nvmlDeviceGetUUID(node *n, char *to, unsigned int room) { return text(n->uuid, to, room); }

int nvmlDeviceGetMemoryInfo(node *n, memory_t *to) {
    if (n->memory[0]) return behave(n->memory);
    if (!n->total) return NOT_SUPPORTED;
    *to = (memory_t){n->total, n->free, n->total - n->free};
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(node *n, int *major, int *minor) {
    if (n->major < 0) return NOT_SUPPORTED;
    *major = n->major;
    *minor = n->minor;
    return SUCCESS;
}

static int mode(int value, unsigned int *now, unsigned int *pending) {
    if (value < 0) return NOT_SUPPORTED;
    *now = *pending = (unsigned)value;
    return SUCCESS;
}

int nvmlDeviceGetEccMode(node *n, unsigned int *now, unsigned int *p) { return mode(n->ecc, now, p); }
int nvmlDeviceGetMigMode(node *n, unsigned int *now, unsigned int *p) { return mode(n->mig, now, p); }

/* Seven places, as on real cards, filled from the end: the empty ones come first. */
int nvmlDeviceGetMaxMigDeviceCount(node *n, unsigned int *count) { (void)n; *count = 7; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(node *n, unsigned int index, node **to) {
    int place = (int)index - (7 - n->n_instances);
    if (place < 0 || place >= n->n_instances) return NOT_FOUND;
    *to = n->instances[place];
    return SUCCESS;
}

int nvmlDeviceGetAttributes_v2(node *n, attributes_t *to) {
    if (n->cores < 0) return NOT_SUPPORTED;
    memset(to, 0, sizeof *to);
    to->cores = (unsigned)n->cores;
    return SUCCESS;
}
