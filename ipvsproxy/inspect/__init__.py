"""What the kernel's state means for a packet: values that `kernel.view` reads, and pure functions that decide."""
