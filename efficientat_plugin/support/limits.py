"""What no sound, model or table has: beyond it a file is damaged, or hostile."""

SAMPLE_RATES = (1_000, 768_000)  # Hz
MAX_BANK = 1 << 22  # n_mels * n_fft: of a larger mel bank the memory is full
MAX_WINDOW_SECONDS = 3600  # or a short sound, made as long, would fill the memory
MAX_PARAMETERS = 10**9  # of the students of a model folder: 4 GB
MAX_DEPTH = 100  # blocks of a transformer
MAX_KERNELS = 64  # that a dynamic convolution mixes, or lines of a dynamic ReLU
MAX_MODEL_BYTES = 5 * 10**8  # of an exported file; the largest has half of it
# Of a table: AudioSet has two million rows, and 0.1 GB of text.
MAX_TABLE_BYTES = 10**9  # of its text, also if it is packed
MAX_PACKED = 20  # bytes in memory of each on the disk, beyond these
MAX_ROWS, MAX_COLUMNS, MAX_CELLS = 2 * 10**7, 10**4, 10**8
MAX_SETTINGS_BYTES = 1 << 24  # of JSON, YAML and labels beside weights or data
