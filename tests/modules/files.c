/* files read|list PATH, files write PATH TEXT, files wait PATH PATH CODE: works with files; exits with the errno.
 *
 * `wait` waits for the first file, then makes the second one and exits with the code.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *path) {
    int error = errno;
    fprintf(stderr, "%s: %s\n", path, strerror(error));
    return error;
}

static int read_file(const char *path) {
    char buffer[4096];
    ssize_t size;
    int fd = open(path, O_RDONLY);
    if (fd < 0) return fail(path);
    while ((size = read(fd, buffer, sizeof buffer)) > 0) write(1, buffer, size);
    return size < 0 ? fail(path) : 0;
}

static int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) return fail(path);
    return close(fd) < 0 ? fail(path) : 0;
}

static int list(const char *path) {
    DIR *directory = opendir(path);
    if (!directory) return fail(path);
    for (struct dirent *entry; (entry = readdir(directory));) printf("%s\n", entry->d_name);
    return 0;
}

int main(int count, char **words) {
    const char *verb = count > 2 ? words[1] : "";
    if (!strcmp(verb, "read")) return read_file(words[2]);
    if (!strcmp(verb, "list")) return list(words[2]);
    if (!strcmp(verb, "write") && count == 4) return write_file(words[2], words[3]);
    if (!strcmp(verb, "wait") && count == 5) {
        while (access(words[2], F_OK)) usleep(50000);
        int error = write_file(words[3], "");
        return error ? error : atoi(words[4]);
    }
    return 2;
}
