/* reply CODE: reads a line, answers "got <line>" after a moment, exits with the code.
 *
 * An engine may pass on what somebody who attaches says before it is ready to bring the answer.
 */
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
    char buffer[256] = "got ";
    size_t size = 4;
    while (size < sizeof buffer && read(0, buffer + size, 1) == 1)
        if (buffer[size++] == '\n') break;
    usleep(200000);
    write(1, buffer, size);
    return count > 1 ? atoi(words[1]) : 0;
}
