/*
 * Client and server for counting what a round trip costs. Few instructions of its own, always the same ones.
 *
 *     round_trips serve-tcp|serve-udp ADDRESS PORT  answers each byte with itself until it is killed
 *     round_trips connection ADDRESS PORT COUNT     connects, asks, is answered and closes, COUNT times
 *     round_trips tcp|udp ADDRESS PORT COUNT        asks and is answered COUNT times on one socket
 *
 * A client prints the 10th, 50th and 90th percentile of the nanoseconds of one round trip, as a JSON object. A client
 * ends without a word when it is not done after ten seconds.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BACKLOG = 512, PATIENCE_SECONDS = 10 };

struct target {
    struct sockaddr_storage address;
    socklen_t size;
};

_Noreturn static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct target target(const char *address, const char *port)
{
    struct target found = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&found.address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&found.address;

    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((unsigned short)atoi(port));
        found.size = sizeof *v4;
    } else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((unsigned short)atoi(port));
        found.size = sizeof *v6;
    } else {
        fprintf(stderr, "%s is no address\n", address);
        exit(2);
    }
    return found;
}

static int open_socket(const struct target *to, int type)
{
    int made = socket(to->address.ss_family, type, 0);

    if (made < 0)
        die("socket");
    return made;
}

static int bound(const struct target *at, int type)
{
    int one = 1, made = open_socket(at, type);

    if (at->address.ss_family == AF_INET6)
        setsockopt(made, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(made, (const struct sockaddr *)&at->address, at->size))
        die("bind");
    return made;
}

_Noreturn static void serve_udp(const struct target *at)
{
    int served = bound(at, SOCK_DGRAM);
    char bytes[64];

    for (;;) {
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(served, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &size);

        if (length > 0)
            sendto(served, bytes, (size_t)length, 0, (struct sockaddr *)&from, size);
    }
}

_Noreturn static void serve_tcp(const struct target *at)
{
    int listening = bound(at, SOCK_STREAM);
    char bytes[64];

    if (listen(listening, BACKLOG))
        die("listen");

    for (;;) {
        int one = 1, client = accept(listening, NULL, NULL);
        ssize_t length;

        if (client < 0)
            continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while ((length = read(client, bytes, sizeof bytes)) > 0)
            if (write(client, bytes, (size_t)length) < 0)
                break;
        close(client);
    }
}

static int connected(const struct target *to, int type)
{
    int made = open_socket(to, type);

    if (connect(made, (const struct sockaddr *)&to->address, to->size))
        die("connect");
    return made;
}

static void ask(int over)
{
    char byte = 'x';

    if (write(over, &byte, 1) != 1 || read(over, &byte, 1) != 1)
        die("no answer");
}

static long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int ascending(const void *left, const void *right)
{
    const long a = *(const long *)left, b = *(const long *)right;

    return (a > b) - (a < b);
}

static void print(long *took, int count)
{
    qsort(took, (size_t)count, sizeof *took, ascending);
    printf("{\"p10\": %ld, \"p50\": %ld, \"p90\": %ld}\n", took[count / 10], took[count / 2], took[count * 9 / 10]);
}

static int measure(const struct target *to, const char *kind, int count)
{
    const int anew = !strcmp(kind, "connection"), type = strcmp(kind, "udp") ? SOCK_STREAM : SOCK_DGRAM;
    long *took = calloc((size_t)count, sizeof *took);
    int over = anew ? -1 : connected(to, type);

    if (!took)
        die("calloc");
    alarm(PATIENCE_SECONDS);
    for (int i = 0; i < count; i++) {
        const long began = now();

        if (anew)
            over = connected(to, type);
        ask(over);
        if (anew)
            close(over);
        took[i] = now() - began;
    }
    print(took, count);
    return 0;
}

int main(int argc, char **argv)
{
    struct target at;

    if (argc < 4) {
        fprintf(stderr, "usage: round_trips serve-tcp|serve-udp ADDRESS PORT | connection|tcp|udp ADDRESS PORT COUNT\n");
        return 2;
    }
    at = target(argv[2], argv[3]);
    if (!strcmp(argv[1], "serve-tcp"))
        serve_tcp(&at);
    if (!strcmp(argv[1], "serve-udp"))
        serve_udp(&at);
    return measure(&at, argv[1], argc > 4 ? atoi(argv[4]) : 1);
}
