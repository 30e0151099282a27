/*
 * An imitation of NVIDIA's management library (libnvidia-ml.so.1) for hosts without a GPU.
 * Copyright: (c) 2026, The dsprov authors. Apache License 2.0.
 *
 * What it answers is read from a text file, at every call, so that a test can change a value under a process
 * that runs: the file named by DSPROV_LAB_NVML, else /etc/dsprov-lab/nvml.conf. Lines are "key = value"; the
 * last one of a key counts; "key.3 = value" says it for the fourth card alone.
 *
 *   count              cards                           name                as NVML prints it
 *   driver_version     580.95.05                       device_id           PCI device and vendor: 0x232910de
 *   nvml_version       13.580.95.05                    subsystem_id        0x...
 *   cuda_version       13000                           bus                 0000:19:00.0, one for each card
 *   init_error         what nvmlInit returns           memory_bytes        total
 *   absent             functions that this driver      memory_used         0 without it
 *                      lacks, blanks between           compute_capability  9.0
 *   utilization_gpu    per cent                        ecc                 0 or 1; without it not supported
 *   utilization_memory per cent                        nvlinks             active links; without it none exist
 *   temperature        degrees Celsius                 power_milliwatts    drawn now
 *
 * Without the file the driver is not loaded. Signatures: NVIDIA's NVML API reference.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_CARDS 64
#define MAX_LINKS 18

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    FUNCTION_NOT_FOUND = 13,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
};

/* A handle is the address of a card's slot, as opaque to callers as NVIDIA's. */
typedef struct {
    int index;
} card_t;

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

typedef struct {
    unsigned int gpu, memory;
} utilization_t;

typedef struct {
    char bus_id_short[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;

static card_t cards[MAX_CARDS];
static int users;

/* The value of a key for a card (or for all, index -1), into `out`; whether there is one. */
static int lookup(const char *key, int index, char *out, size_t size)
{
    const char *path = getenv("DSPROV_LAB_NVML");
    FILE *file = fopen(path ? path : "/etc/dsprov-lab/nvml.conf", "r");
    char line[512], own[80];
    int found = 0, exact = 0;

    if (!file)
        return 0;
    snprintf(own, sizeof own, "%s.%d", key, index);
    while (fgets(line, sizeof line, file)) {
        char *value = strchr(line, '=');
        size_t length;
        int mine;

        if (line[0] == '#' || !value)
            continue;
        for (length = (size_t)(value - line); length && strchr(" \t", line[length - 1]); length--)
            ;
        line[length] = '\0';
        mine = index >= 0 && !strcmp(line, own);
        if (!mine && (exact || strcmp(line, key)))
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\r\n")] = '\0';
        snprintf(out, size, "%s", value);
        exact |= mine;
        found = 1;
    }
    fclose(file);
    return found;
}

static unsigned long long number(const char *key, int index, unsigned long long otherwise)
{
    char text[64];

    return lookup(key, index, text, sizeof text) ? strtoull(text, NULL, 0) : otherwise;
}

/* Whether this driver is said to lack a function. */
static int absent(const char *function)
{
    char names[512], *word;

    if (!lookup("absent", -1, names, sizeof names))
        return 0;
    for (word = strtok(names, " "); word; word = strtok(NULL, " "))
        if (!strcmp(word, function))
            return 1;
    return 0;
}

static int count(void)
{
    unsigned long long said = number("count", -1, 0);

    return said > MAX_CARDS ? MAX_CARDS : (int)said;
}

/* What every call but a few looks at first. */
#define READY()                        \
    do {                               \
        if (!users)                    \
            return UNINITIALIZED;      \
        if (absent(__func__))          \
            return FUNCTION_NOT_FOUND; \
    } while (0)

#define CARD(card, pointer)                                                      \
    do {                                                                         \
        READY();                                                                 \
        if (!(card) || (card) < cards || (card) >= cards + count() || !(pointer)) \
            return INVALID_ARGUMENT;                                             \
    } while (0)

static int text(const char *key, int index, char *out, unsigned int size)
{
    char value[256];

    if (!out)
        return INVALID_ARGUMENT;
    if (!lookup(key, index, value, sizeof value))
        return NOT_SUPPORTED;
    if (strlen(value) + 1 > size)
        return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

static int small(const char *key, int index, unsigned int *out)
{
    char value[64];

    if (!lookup(key, index, value, sizeof value))
        return NOT_SUPPORTED;
    *out = (unsigned int)strtoull(value, NULL, 0);
    return SUCCESS;
}

/* --- the library itself */

EXPORT int nvmlInitWithFlags(unsigned int flags)
{
    char said[64];
    int error;

    (void)flags;
    if (!lookup("driver_version", -1, said, sizeof said))
        return DRIVER_NOT_LOADED;
    error = (int)number("init_error", -1, SUCCESS);
    if (!error)
        users++;
    return error;
}

EXPORT int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT int nvmlInit(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT int nvmlShutdown(void)
{
    if (!users)
        return UNINITIALIZED;
    users--;
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int error)
{
    switch (error) {
    case SUCCESS:
        return "Success";
    case UNINITIALIZED:
        return "Uninitialized";
    case INVALID_ARGUMENT:
        return "Invalid Argument";
    case NOT_SUPPORTED:
        return "Not Supported";
    case NOT_FOUND:
        return "Not Found";
    case INSUFFICIENT_SIZE:
        return "Insufficient Size";
    case DRIVER_NOT_LOADED:
        return "Driver Not Loaded";
    case FUNCTION_NOT_FOUND:
        return "Function Not Found";
    case LIB_RM_VERSION_MISMATCH:
        return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH:
        return "Argument version mismatch";
    default:
        return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    READY();
    return text("driver_version", -1, version, length);
}

/* Answers without nvmlInit, as the real one does: a mismatch can be named by it. */
EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    return text("nvml_version", -1, version, length);
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version)
{
    if (absent(__func__))
        return FUNCTION_NOT_FOUND;
    if (!version)
        return INVALID_ARGUMENT;
    *version = (int)number("cuda_version", -1, 0);
    return SUCCESS;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    if (absent(__func__))
        return FUNCTION_NOT_FOUND;
    return nvmlSystemGetCudaDriverVersion(version);
}

/* --- finding cards */

EXPORT int nvmlDeviceGetCount_v2(unsigned int *found)
{
    READY();
    if (!found)
        return INVALID_ARGUMENT;
    *found = (unsigned int)count();
    return SUCCESS;
}

EXPORT int nvmlDeviceGetCount(unsigned int *found)
{
    return nvmlDeviceGetCount_v2(found);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned int index, card_t **card)
{
    READY();
    if (!card || index >= (unsigned int)count())
        return INVALID_ARGUMENT;
    cards[index].index = (int)index;
    *card = &cards[index];
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex(unsigned int index, card_t **card)
{
    return nvmlDeviceGetHandleByIndex_v2(index, card);
}

EXPORT int nvmlDeviceGetIndex(card_t *card, unsigned int *index)
{
    CARD(card, index);
    *index = (unsigned int)card->index;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMinorNumber(card_t *card, unsigned int *minor)
{
    CARD(card, minor);
    *minor = (unsigned int)card->index;
    return SUCCESS;
}

/* A card of the lab is never cut into parts. */
EXPORT int nvmlDeviceIsMigDeviceHandle(card_t *card, unsigned int *part)
{
    CARD(card, part);
    *part = 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(card_t *card, unsigned int *current, unsigned int *pending)
{
    CARD(card, current);
    return pending ? NOT_SUPPORTED : INVALID_ARGUMENT;
}

/* --- what a card is */

EXPORT int nvmlDeviceGetName(card_t *card, char *name, unsigned int length)
{
    CARD(card, name);
    return text("name", card->index, name, length);
}

EXPORT int nvmlDeviceGetPciInfo_v3(card_t *card, pci_t *info)
{
    char bus[32];
    unsigned int domain, number_of_bus, device, function;

    CARD(card, info);
    memset(info, 0, sizeof *info);
    if (!lookup("bus", card->index, bus, sizeof bus)
        || sscanf(bus, "%x:%x:%x.%u", &domain, &number_of_bus, &device, &function) != 4)
        return NOT_SUPPORTED;
    info->domain = domain;
    info->bus = number_of_bus;
    info->device = device;
    info->pci_device_id = (unsigned int)number("device_id", card->index, 0);
    info->pci_subsystem_id = (unsigned int)number("subsystem_id", card->index, 0);
    snprintf(info->bus_id_short, sizeof info->bus_id_short, "%04X:%02X:%02X.0", domain & 0xffff,
             number_of_bus & 0xff, device & 0xff);
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", domain, number_of_bus & 0xff,
             device & 0xff);
    return SUCCESS;
}

/* The layout of version 2 has the same size and the same fields up to the subsystem. */
EXPORT int nvmlDeviceGetPciInfo_v2(card_t *card, pci_t *info)
{
    return nvmlDeviceGetPciInfo_v3(card, info);
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, card_t **card)
{
    unsigned int wanted[3];
    int index;

    READY();
    if (!bus_id || !card || sscanf(bus_id, "%x:%x:%x", &wanted[0], &wanted[1], &wanted[2]) != 3)
        return INVALID_ARGUMENT;
    for (index = 0; index < count(); index++) {
        pci_t info;

        cards[index].index = index;
        if (nvmlDeviceGetPciInfo_v3(&cards[index], &info) == SUCCESS && info.domain == wanted[0]
            && info.bus == wanted[1] && info.device == wanted[2]) {
            *card = &cards[index];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

/* Made from the index: stable, and different on each card. */
EXPORT int nvmlDeviceGetUUID(card_t *card, char *uuid, unsigned int length)
{
    CARD(card, uuid);
    if (length < 41)
        return INSUFFICIENT_SIZE;
    snprintf(uuid, length, "GPU-d5b0f000-0000-4000-8000-%012x", (unsigned int)card->index);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, card_t **card)
{
    int index;

    READY();
    if (!uuid || !card)
        return INVALID_ARGUMENT;
    for (index = 0; index < count(); index++) {
        char own[96];

        cards[index].index = index;
        if (nvmlDeviceGetUUID(&cards[index], own, sizeof own) == SUCCESS && !strcmp(own, uuid)) {
            *card = &cards[index];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetCudaComputeCapability(card_t *card, int *major, int *minor)
{
    char said[32];

    CARD(card, major);
    if (!minor)
        return INVALID_ARGUMENT;
    if (!lookup("compute_capability", card->index, said, sizeof said)
        || sscanf(said, "%d.%d", major, minor) != 2)
        return NOT_SUPPORTED;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(card_t *card, memory_t *memory)
{
    CARD(card, memory);
    memory->total = number("memory_bytes", card->index, 0);
    memory->used = number("memory_used", card->index, 0);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(card_t *card, memory_v2_t *memory)
{
    CARD(card, memory);
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    memory->total = number("memory_bytes", card->index, 0);
    memory->used = number("memory_used", card->index, 0);
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUtilizationRates(card_t *card, utilization_t *rates)
{
    CARD(card, rates);
    rates->gpu = (unsigned int)number("utilization_gpu", card->index, 0);
    rates->memory = (unsigned int)number("utilization_memory", card->index, 0);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetEccMode(card_t *card, unsigned int *current, unsigned int *pending)
{
    int error;

    CARD(card, current);
    if (!pending)
        return INVALID_ARGUMENT;
    error = small("ecc", card->index, current);
    if (!error)
        *pending = *current;
    return error;
}

EXPORT int nvmlDeviceGetNvLinkState(card_t *card, unsigned int link, unsigned int *active)
{
    unsigned int links;
    int error;

    CARD(card, active);
    if (link >= MAX_LINKS)
        return INVALID_ARGUMENT;
    error = small("nvlinks", card->index, &links);
    if (!error)
        *active = link < links;
    return error;
}

EXPORT int nvmlDeviceGetTemperature(card_t *card, int sensor, unsigned int *degrees)
{
    CARD(card, degrees);
    if (sensor)
        return INVALID_ARGUMENT;
    return small("temperature", card->index, degrees);
}

EXPORT int nvmlDeviceGetPowerUsage(card_t *card, unsigned int *milliwatts)
{
    CARD(card, milliwatts);
    return small("power_milliwatts", card->index, milliwatts);
}

EXPORT int nvmlDeviceGetPersistenceMode(card_t *card, unsigned int *mode)
{
    CARD(card, mode);
    *mode = (unsigned int)number("persistence", card->index, 0);
    return SUCCESS;
}
