/* echo CODE: answers each line with "got <line>", exits with the code after the line "end". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **words) {
    char line[256];
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        printf("got %s", line);
        if (!strcmp(line, "end\n")) return count > 1 ? atoi(words[1]) : 0;
    }
    return 1;
}
