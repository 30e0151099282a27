/*
 * `nvidia-smi -L` of an imitated driver: the cards that libnvidia-ml.so.1 tells of. Nothing else of nvidia-smi
 * is asked by what the lab proves.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef int (*call_t)();

int main(int words, char **word)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW), *card;
    char name[96], uuid[96];
    unsigned int index, count = 0;

    if (words != 2 || (strcmp(word[1], "-L") && strcmp(word[1], "--list-gpus"))) {
        fprintf(stderr, "this nvidia-smi is the lab's, and knows -L alone\n");
        return 2;
    }
    if (!library || ((call_t)dlsym(library, "nvmlInit_v2"))()) {
        fprintf(stderr, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n");
        return 9;
    }
    ((call_t)dlsym(library, "nvmlDeviceGetCount_v2"))(&count);
    for (index = 0; index < count; index++) {
        if (((call_t)dlsym(library, "nvmlDeviceGetHandleByIndex_v2"))(index, &card)
            || ((call_t)dlsym(library, "nvmlDeviceGetName"))(card, name, (unsigned int)sizeof name)
            || ((call_t)dlsym(library, "nvmlDeviceGetUUID"))(card, uuid, (unsigned int)sizeof uuid))
            return 1;
        printf("GPU %u: %s (UUID: %s)\n", index, name, uuid);
    }
    return 0;
}
