"""What the kernel's state means for a packet: values that `kernel.read.reader` reads, functions that decide."""
