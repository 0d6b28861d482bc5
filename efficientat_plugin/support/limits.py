"""Limits that no real sound, model or table exceeds; larger files are refused."""

SAMPLE_RATES = (1_000, 768_000)  # Hz
MAX_BANK = 1 << 22  # n_mels * n_fft: a larger mel bank would fill the memory
MAX_WINDOW_SECONDS = 3600  # a short sound padded to more would fill the memory
MAX_PARAMETERS = 10**9  # of all students in a model folder: 4 GB
MAX_DEPTH = 100  # blocks of a transformer
MAX_KERNELS = 64  # kernels of a dynamic convolution, or lines of a dynamic ReLU
MAX_MODEL_BYTES = 5 * 10**8  # of an exported file; the largest has half as many
# Tables: AudioSet has two million rows, and 0.1 GB of text.
MAX_TABLE_BYTES = 10**9  # of text, also after decompression
MAX_PACKED = 20  # compression ratio of tables that are larger than that
MAX_ROWS, MAX_COLUMNS, MAX_CELLS = 2 * 10**7, 10**4, 10**8
MAX_SETTINGS_BYTES = 1 << 24  # of JSON, YAML and label files next to weights or data
