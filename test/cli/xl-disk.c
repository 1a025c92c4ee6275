/* What xl's own parser (libxlutil) makes of DISKSPECs: a line of standard input is one, its components between US; a line
 * of output has the fields of the disk between US, or "refused". */
#include <libxl.h>
#include <libxlutil.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COMPONENTS 16

static const char *text(const char *value) {
  return value ? value : "";
}

/* 1, 0, or nothing where it was not said. */
static const char *choice(libxl_defbool value) {
  if (libxl_defbool_is_default(value)) return "";
  return libxl_defbool_val(value) ? "1" : "0";
}

int main(void) {
  FILE *nowhere = fopen("/dev/null", "w");
  XLU_Config *config = xlu_cfg_init(nowhere, "disk");
  char *line = NULL;
  size_t room = 0;
  ssize_t length;
  while ((length = getline(&line, &room, stdin)) > 0) {
    const char *components[MAX_COMPONENTS];
    int count = 0;
    if (line[length - 1] == '\n') line[length - 1] = 0;
    for (char *at = line; at != NULL && count < MAX_COMPONENTS;) {
      components[count++] = strsep(&at, "\x1f");
    }
    libxl_device_disk disk;
    libxl_device_disk_init(&disk);
    if (xlu_disk_parse(config, count, components, &disk) != 0) {
      puts("refused");
    } else {
      printf("%s\x1f%s\x1f%s\x1f%d\x1f%d\x1f%s\x1f%s\x1f%s\x1f%d\x1f%s\n", text(disk.pdev_path),
             libxl_disk_format_to_string(disk.format), text(disk.vdev), disk.readwrite,
             disk.is_cdrom, text(disk.backend_domname), libxl_disk_backend_to_string(disk.backend),
             text(disk.script), disk.direct_io_safe, choice(disk.discard_enable));
    }
    libxl_device_disk_dispose(&disk);
  }
  return 0;
}
