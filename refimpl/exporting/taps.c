/* Compiled with -DTAPS it is a program: it reads images from a .npy file, as input_0.npy of a golden
 * bundle, and writes every value of the network as .npy into a folder, all images one after the
 * other. Little-endian machines. */
#include <stdio.h>
#include <stdlib.h>

static const char *tap_folder;
static int tap_image, tap_part; /* indices of the image, and of its head, that is computed */

/* Write `count` numbers of an array (first, rest...) behind those that came before: 'f' reals,
 * 'i' whole numbers, which are in floats where they are computed, 'u' words, 'U' words column by
 * column. */
static void tap(const char *name, char kind, const void *x, int first, const char *rest, int count)
{
    const char *type = kind == 'f' ? "<f4" : kind == 'i' ? "<i4" : "<u8";
    char path[4096], header[129];
    FILE *file;
    int length, i;
    snprintf(path, sizeof path, "%s/%s.npy", tap_folder, name);
    length = snprintf(header, sizeof header, "%cNUMPY%c%c%c%c{'descr': '%s', 'fortran_order': %s, "
                      "'shape': (%d,%s), }", 0x93, 1, 0, 118, 0, type,
                      kind == 'U' ? "True" : "False", first * (tap_image + 1), rest);
    memset(header + length, ' ', (size_t)(127 - length));
    header[127] = '\n';
    file = fopen(path, tap_image + tap_part == 0 ? "wb" : "r+b");
    if (file == NULL) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(2);
    }
    fwrite(header, 1, 128, file);
    fseek(file, 0, SEEK_END);
    if (kind == 'i')
        for (i = 0; i < count; i++) {
            const int32_t whole = (int32_t)((const float *)x)[i];
            fwrite(&whole, sizeof whole, 1, file);
        }
    else
        fwrite(x, kind == 'f' ? sizeof(float) : sizeof(word), (size_t)count, file);
    if (ferror(file) | fclose(file)) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(2);
    }
}
