/* A libnvidia-ml.so.1 that answers from a text file, read again at every call.

   One line a fact, later lines win:
     device INDEX UUID            a device; without the line the driver has lost it
     ecc INDEX COUNT              uncorrected volatile errors
     remap INDEX PENDING FAILED   row remapping
     reasons INDEX BITS           why clocks are lowered
     links INDEX UP...            one 0 or 1 for each NVLink
     xid INDEX NUMBER             told once, in the order of the file, to who listened before it was
     gone                         the driver is not loaded
   A fact that is not there is NOT_SUPPORTED, as under MIG. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, TIMEOUT = 10, LOST = 15, NO_DRIVER = 9 };
enum { DEVICES = 16, LINKS = 18 };

typedef unsigned long long u64;
typedef struct {
    int here, has_ecc, has_remap, has_reasons, links, up[LINKS];
    char uuid[96];
    u64 ecc, reasons;
    unsigned pending, failed;
} device_t;
typedef struct {
    void *device;
    u64 type, data;
    unsigned gpu, compute;
} event_t;

/* Each thread reads for itself; what was told is common to all. */
static __thread device_t found[DEVICES];
static __thread int is_gone, count;
static __thread struct { int index; u64 number; } xids[4096];
static __thread int xids_written;
static int xids_told, is_taken;

static int load(void) {
    const char *path = getenv("REPLAYED_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512], word[32], uuid[96];
    int index, offset, up, step;
    u64 number;
    unsigned pending, failed;
    memset(found, 0, sizeof found);
    is_gone = count = xids_written = 0;
    if (!file) return NO_DRIVER;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%31s%n", word, &offset) != 1) continue;
        if (!strcmp(word, "gone")) { is_gone = 1; continue; }
        if (sscanf(line + offset, "%d%n", &index, &step) != 1) continue;
        if (index < 0 || index >= DEVICES) continue;
        offset += step;
        if (index >= count) count = index + 1;
        device_t *d = &found[index];
        if (!strcmp(word, "device") && sscanf(line + offset, "%95s", uuid) == 1) {
            d->here = 1;
            strcpy(d->uuid, uuid);
        } else if (!strcmp(word, "ecc") && sscanf(line + offset, "%llu", &number) == 1) {
            d->has_ecc = 1;
            d->ecc = number;
        } else if (!strcmp(word, "remap") && sscanf(line + offset, "%u %u", &pending, &failed) == 2) {
            d->has_remap = 1;
            d->pending = pending;
            d->failed = failed;
        } else if (!strcmp(word, "reasons") && sscanf(line + offset, "%llu", &number) == 1) {
            d->has_reasons = 1;
            d->reasons = number;
        } else if (!strcmp(word, "links")) {
            for (d->links = 0; d->links < LINKS && sscanf(line + offset, "%d%n", &up, &step) == 1; offset += step)
                d->up[d->links++] = up;
        } else if (!strcmp(word, "xid") && sscanf(line + offset, "%llu", &number) == 1 && xids_written < 4096) {
            xids[xids_written].index = index;
            xids[xids_written++].number = number;
        }
    }
    fclose(file);
    return is_gone ? NO_DRIVER : OK;
}

static int look(void *handle, device_t **device) {
    int state = load();
    long index = (long)handle - 1;
    if (state != OK) return UNINITIALIZED;
    if (index < 0 || index >= DEVICES) return INVALID;
    *device = &found[index];
    return found[index].here ? OK : LOST;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return load(); }
int nvmlInit_v2(void) { return load(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "replayed"; }

int nvmlDeviceGetCount_v2(unsigned *answer) {
    int state = load();
    *answer = (unsigned)count;
    return state == OK ? OK : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    device_t *device;
    *handle = (void *)(long)(index + 1);
    return look(*handle, &device);
}

int nvmlDeviceGetUUID(void *handle, char *answer, unsigned length) {
    device_t *device;
    int state = look(handle, &device);
    if (state == OK) snprintf(answer, length, "%s", device->uuid);
    return state;
}

int nvmlDeviceGetName(void *handle, char *answer, unsigned length) {
    device_t *device;
    int state = look(handle, &device);
    if (state == OK) snprintf(answer, length, "Replayed");
    return state;
}

int nvmlDeviceGetMemoryInfo(void *handle, u64 *answer) {
    device_t *device;
    int state = look(handle, &device);
    answer[0] = 80000000000ull;
    answer[1] = answer[2] = 40000000000ull;
    return state;
}

int nvmlDeviceGetTotalEccErrors(void *handle, unsigned kind, unsigned counter, u64 *answer) {
    device_t *device;
    int state = look(handle, &device);
    if (state != OK) return state;
    if (kind != 1 || counter != 0) return INVALID;
    *answer = device->ecc;
    return device->has_ecc ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    device_t *device;
    int state = look(handle, &device);
    if (state != OK) return state;
    *corrected = *uncorrected = 0;
    *pending = device->pending;
    *failed = device->failed;
    return device->has_remap ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, u64 *answer) {
    device_t *device;
    int state = look(handle, &device);
    if (state != OK) return state;
    *answer = device->reasons;
    return device->has_reasons ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *answer) {
    device_t *device;
    int state = look(handle, &device);
    if (state != OK) return state;
    if ((int)link >= device->links) return NOT_SUPPORTED;
    *answer = (unsigned)device->up[link];
    return OK;
}

int nvmlEventSetCreate(void **set) {
    *set = (void *)1;
    load();
    xids_told = xids_written;
    return OK;
}

int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(void *handle, u64 types, void *set) { (void)set; (void)types; device_t *d; return look(handle, &d); }

static int tell(event_t *event) {
    int state = load();
    if (state != OK) return UNINITIALIZED;
    while (__atomic_test_and_set(&is_taken, __ATOMIC_ACQUIRE)) {}
    int number = xids_told < xids_written ? xids_told++ : -1;
    __atomic_clear(&is_taken, __ATOMIC_RELEASE);
    if (number < 0) return TIMEOUT;
    memset(event, 0, sizeof *event);
    event->device = (void *)(long)(xids[number].index + 1);
    event->type = 8;
    event->data = xids[number].number;
    return OK;
}

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned wait_ms) {
    (void)set;
    struct timespec pause = {0, 20000000};
    int state;
    while ((state = tell(event)) == TIMEOUT && wait_ms >= 20) {
        nanosleep(&pause, NULL);
        wait_ms -= 20;
    }
    return state;
}
