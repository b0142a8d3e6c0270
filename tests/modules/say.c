/* say OUT ERR CODE [PAUSE_MS]: writes a line to each output, a pause in between, and exits with the code. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void line(int fd, const char *text) {
    write(fd, text, strlen(text));
    write(fd, "\n", 1);
}

int main(int count, char **words) {
    if (count < 4) return 2;
    line(1, words[1]);
    if (count > 4) usleep(atoi(words[4]) * 1000);
    line(2, words[2]);
    return atoi(words[3]);
}
