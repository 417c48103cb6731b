"""fp16 graphs: which nodes stay fp32 (`islands`), and the casting of the rest (`casting`)."""

import numpy as np

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5; below it lie the subnormals, with ever fewer bits
TENSOR_CORE_DEPTH = 16  # products that one instruction of a tensor core adds up exactly before it rounds
