// Writes 4 KiB at random places from several threads and keeps when each write was acknowledged, to the nanosecond:
// fio's logs know milliseconds, and a pause of a cut is a few of them.
// ./prober DEVICE OFFSET BYTES THREADS SECONDS RATE STRIDE OUTPUT
// RATE is writes a second of all threads together, 0 for as many as go. With a rate, a write's latency counts from when
// it was due, so that a stall shows in every write that it held up. With a STRIDE (a power of two, BYTES too), one block of
// each STRIDE bytes is written once, in a scattered order, and then it ends. OUTPUT gets two u64 a write: time of the
// acknowledgement (CLOCK_MONOTONIC) and latency, in nanoseconds, thread after thread.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BYTES = 1 << 20, SATURATED_MAX = 12000 };

struct writer {
    pthread_t thread;
    uint64_t (*log)[2];
    uint64_t count, room, seed, first_due, interval;
};

static int device;
static uint64_t offset, blocks, end, stride, strides;
static _Atomic uint64_t taken;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void wait_until(uint64_t due) {
    struct timespec t = {due / 1000000000ull, due % 1000000000ull};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0) == EINTR)
        ;
}

static uint64_t next_random(uint64_t *seed) { // xorshift64
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void *write_on(void *argument) {
    struct writer *w = argument;
    uint64_t *bytes; // what is written: one of 256 random blocks, so that chunks do not compress
    if (posix_memalign((void **)&bytes, BLOCK, BYTES))
        exit(1);
    for (int i = 0; i < BYTES / 8; i++)
        bytes[i] = next_random(&w->seed);
    for (uint64_t due = w->first_due; w->count < w->room; due += w->interval) {
        if (w->interval)
            wait_until(due);
        else
            due = now();
        if (due >= end)
            break;
        uint64_t random = next_random(&w->seed), *block = bytes + (random >> 56) * BLOCK / 8;
        uint64_t place = random % blocks * BLOCK;
        if (stride) {
            uint64_t number = taken++;
            if (number >= strides)
                break;
            place = number * 40503 % strides * stride; // an odd factor: each place comes once
        }
        if (pwrite(device, block, BLOCK, offset + place) != BLOCK) {
            perror("pwrite");
            exit(1);
        }
        uint64_t done = now();
        w->log[w->count][0] = done;
        w->log[w->count++][1] = done - due;
    }
    return 0;
}

int main(int count, char **given) {
    if (count != 9)
        return 2;
    device = open(given[1], O_RDWR | O_DIRECT);
    if (device < 0) {
        perror(given[1]);
        return 1;
    }
    offset = strtoull(given[2], 0, 10);
    blocks = strtoull(given[3], 0, 10) / BLOCK;
    int threads = atoi(given[4]), seconds = atoi(given[5]), rate = atoi(given[6]);
    stride = strtoull(given[7], 0, 10);
    strides = stride ? blocks * BLOCK / stride : 0;
    struct writer *all = calloc(threads, sizeof *all);
    for (int i = 0; i < threads; i++) {
        struct writer *w = all + i;
        w->room = (uint64_t)seconds * (rate ? rate / threads + 2 : SATURATED_MAX);
        w->log = mmap(0, w->room * 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (w->log == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
    }
    uint64_t start = now();
    end = start + seconds * 1000000000ull;
    for (int i = 0; i < threads; i++) {
        struct writer *w = all + i;
        w->seed = start * 2 + 1 + i * 0x9e3779b97f4a7c15ull;
        if (rate) {
            w->interval = 1000000000ull * threads / rate;
            w->first_due = start + w->interval * i / threads;
        }
        pthread_create(&w->thread, 0, write_on, w);
    }
    FILE *output = fopen(given[8], "wb");
    if (!output)
        return 1;
    for (int i = 0; i < threads; i++) {
        pthread_join(all[i].thread, 0);
        fwrite(all[i].log, 16, all[i].count, output);
    }
    return fclose(output) != 0;
}
