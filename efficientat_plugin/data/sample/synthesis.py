"""Synthesises sounds of AudioSet classes with NumPy.

Every sound has one signature, ``(rng, num_samples, sample_rate) -> [N]`` float64, and
one contract: it is a pure function of its arguments (all randomness comes from `rng`),
its level is arbitrary (the mixing sets it), and no two seconds of it are silent.

Frequencies are in Hz, times in seconds. `SOUNDS`, at the end, lists all of them. A
published AudioSet model recognises each: before adding one, check what such a model
predicts for it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float64]
Sound = Callable[[np.random.Generator, int, int], Waveform]

# ITU-T Q.23: each key is a tone of its row plus a tone of its column (Hz).
DTMF_ROWS = (697.0, 770.0, 852.0, 941.0)
DTMF_COLUMNS = (1209.0, 1336.0, 1477.0)


# --------------------------------------------------------------------- building blocks
def _times(num_samples: int, sample_rate: int) -> Waveform:
    """Returns the time of every sample, in seconds."""
    return np.arange(num_samples, dtype=np.float64) / sample_rate


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a frequency or a rate, spread evenly over octaves."""
    return float(low * (high / low) ** rng.random())


def _phase(frequency: float | Waveform, num_samples: int, rate: int) -> Waveform:
    """Returns an oscillator's phase, in radians; `frequency` is a number or [N]."""
    if isinstance(frequency, float):
        return 2 * np.pi * frequency / rate * np.arange(num_samples, dtype=np.float64)
    return 2 * np.pi / rate * np.cumsum(frequency)


def _swing(
    rng: np.random.Generator, frequency: float, num_samples: int, rate: int
) -> Waveform:
    """Returns a slow sine between 0 and 1, from a random phase on."""
    start = rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.sin(_phase(frequency, num_samples, rate) + start)


def _series(phase: Waveform, weights: Sequence[float] | Waveform) -> Waveform:
    """Computes ``sum_k weights[k] sin((k + 1) phase)`` by Clenshaw's recurrence."""
    twice_cosine = 2 * np.cos(phase)
    above, current = np.zeros_like(phase), np.zeros_like(phase)
    for weight in weights[::-1]:
        above, current = current, weight + twice_cosine * current - above
    return np.sin(phase) * current


def _wander(rng: np.random.Generator, num_samples: int, points: int) -> Waveform:
    """Returns a slow random curve in [-1, 1] through `points` random values."""
    places = np.linspace(0, points - 1, num_samples)
    return np.interp(places, np.arange(points), rng.uniform(-1, 1, points))


def noise(
    rng: np.random.Generator,
    num_samples: int,
    sample_rate: int,
    low: float = 20.0,
    high: float | None = None,
    slope: float = 0.0,
) -> Waveform:
    """Makes noise of unit RMS and power ``frequency ** slope`` within a band.

    It is drawn as a spectrum, so that a filter costs no second transform and has no
    transient. Real and imaginary parts are uniform, but so many that samples are
    Gaussian. Power falls off outside the band from ``low`` to ``high``.
    """
    bins = num_samples // 2 + 1
    frequency = np.maximum(np.arange(bins), 0.5) * (sample_rate / num_samples)
    power = 1 / (1 + np.square(np.square(low / frequency)))
    if high is not None:
        power /= 1 + np.square(np.square(frequency / high))
    if slope:
        power *= (frequency / 1000) ** slope
    spectrum = (rng.random(2 * bins) - 0.5).view(np.complex128) * np.sqrt(power)
    wave = np.fft.irfft(spectrum, num_samples)
    return wave / np.sqrt(np.mean(np.square(wave)))


def _onsets(
    rng: np.random.Generator, seconds: float, period: float, jitter: float = 0.0
) -> Waveform:
    """Draws the times (seconds) of a repeated event, from within a period before 0."""
    count = int(seconds / period) + 2
    regular = (np.arange(count) - 0.9 * rng.random()) * period
    return regular + jitter * period * rng.uniform(-0.5, 0.5, count)


def _place(
    num_samples: int,
    sample_rate: int,
    onsets: Waveform,
    events: Sequence[Waveform],
    gains: Waveform | None = None,
) -> Waveform:
    """Adds the events, taken in turn, at their onsets (seconds), cut at the edges."""
    out = np.zeros(num_samples)
    for index, onset in enumerate(onsets):
        event = events[index % len(events)]
        start = int(np.floor(onset * sample_rate))
        first, last = max(start, 0), min(start + len(event), num_samples)
        if last > first:
            gain = 1.0 if gains is None else gains[index]
            out[first:last] += gain * event[first - start : last - start]
    return out


def plateau(num_samples: int, sample_rate: int, fade: float = 0.004) -> Waveform:
    """Returns an envelope of 1, faded in and out in `fade` seconds, without clicks."""
    edge = np.arange(num_samples) + 0.5
    return np.minimum(1.0, np.minimum(edge, edge[::-1]) / (fade * sample_rate))


def _gate(
    rng: np.random.Generator,
    num_samples: int,
    sample_rate: int,
    on: float,
    off: float,
    fade: float = 0.004,
) -> Waveform:
    """Returns an envelope that is open for `on` seconds and shut for `off`, in turn."""
    event = plateau(int(on * sample_rate), sample_rate, fade)
    onsets = _onsets(rng, num_samples / sample_rate, on + off)
    return _place(num_samples, sample_rate, onsets, [event])


def _room(
    rng: np.random.Generator, wave: Waveform, sample_rate: int, wet: float = 0.3
) -> Waveform:
    """Adds a room's sparse, decaying echoes, at a tenth of a convolution's cost."""
    out = wave.copy()
    decay = rng.uniform(0.05, 0.25)
    for delay in 0.004 + rng.exponential(decay, 14):
        shift = int(delay * sample_rate)
        gain = wet * np.exp(-delay / decay) * (1 if rng.random() < 0.5 else -1)
        if shift < len(wave):
            out[shift:] += gain * wave[: len(wave) - shift]
    return out


def _strike(
    frequency: float,
    ratios: Sequence[float],
    weights: Sequence[float],
    decays: Sequence[float],
    sample_rate: int,
) -> Waveform:
    """Makes a struck body: partials at ratios of `frequency`; `decays` in seconds."""
    time = _times(int(1.5 * max(decays) * sample_rate), sample_rate)
    out = np.zeros_like(time)
    for ratio, weight, decay in zip(ratios, weights, decays, strict=True):
        # Each partial ends after six of its own decays, which are 52 dB.
        part = time[: int(6 * decay * sample_rate)]
        if ratio * frequency < sample_rate / 2:
            tone = np.sin(2 * np.pi * ratio * frequency * part)
            out[: len(part)] += weight * np.exp(-part / decay) * tone
    return out * np.minimum(1.0, time / 0.001) * np.minimum(1.0, time[::-1] / 0.1)


def _burst(
    rng: np.random.Generator,
    sample_rate: int,
    low: float,
    high: float | None,
    decay: float,
) -> Waveform:
    """Makes noise that starts at once and decays in `decay` seconds."""
    time = _times(int(8 * decay * sample_rate), sample_rate)
    return np.exp(-time / decay) * noise(rng, len(time), sample_rate, low, high)


def _thud(sample_rate: int, start: float, end: float, decay: float) -> Waveform:
    """Makes a low knock whose pitch falls from `start` to `end` Hz."""
    time = _times(int(6 * decay * sample_rate), sample_rate)
    frequency = end + (start - end) * np.exp(-time / (0.4 * decay))
    envelope = np.exp(-time / decay) * np.minimum(1.0, time / 0.004)
    return envelope * np.sin(_phase(frequency, len(time), sample_rate))


# --------------------------------------------------------------- tones and telephones
def sine_wave(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """One steady tone."""
    frequency = _log_uniform(rng, 60, 900)
    return np.sin(_phase(frequency, num_samples, sample_rate) + rng.uniform(0, 6))


def chirp_tone(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """A tone that sweeps several octaves, evenly in Hz, up or down."""
    start, end = rng.uniform(80, 400), rng.uniform(3000, 10000)
    if rng.random() < 0.5:
        start, end = end, start
    frequency = np.linspace(start, end, num_samples)
    return np.sin(_phase(frequency, num_samples, sample_rate))


def beep(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """Short electronic tones with longer pauses."""
    frequency = _log_uniform(rng, 1000, 2000)
    on, off = rng.uniform(0.05, 0.15), rng.uniform(0.4, 1.2)
    tone = _series(_phase(frequency, num_samples, sample_rate), [1.0, 0.2, 0.2])
    return tone * _gate(rng, num_samples, sample_rate, on, off)


def dtmf(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """A number being dialled, every key a pair of tones."""
    on, off = rng.uniform(0.08, 0.22), rng.uniform(0.05, 0.2)
    length = int(on * sample_rate)
    onsets = _onsets(rng, num_samples / sample_rate, on + off)
    keys = []
    for _ in onsets:
        row = np.sin(_phase(DTMF_ROWS[rng.integers(4)], length, sample_rate))
        column = np.sin(_phase(DTMF_COLUMNS[rng.integers(3)], length, sample_rate))
        keys.append(plateau(length, sample_rate) * (row + 1.2 * column))
    return _place(num_samples, sample_rate, onsets, keys)


def busy_signal(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """A busy line: as long on as off (ITU-T E.180: 480 and 620, or 425 Hz)."""
    pair = ((480.0, 620.0), (480.0, 620.0), (425.0, 425.0))[rng.integers(3)]
    on, detune = rng.uniform(0.22, 0.52), rng.uniform(0.99, 1.01)
    low = np.sin(_phase(pair[0] * detune, num_samples, sample_rate))
    high = np.sin(_phase(pair[1] * detune, num_samples, sample_rate))
    return (low + high) * _gate(rng, num_samples, sample_rate, on, on)


def ringtone(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """An electronic ringer: a fast warble of two notes, one second in every two."""
    step = rng.uniform(0.05, 0.08)
    note, interval = _log_uniform(rng, 800, 1500), rng.uniform(1.19, 1.34)
    length = int(step * sample_rate)
    notes = []
    for frequency in (note, note * interval):
        tone = _series(_phase(frequency, length, sample_rate), [1, 0.2, 0.3, 0.1, 0.1])
        notes.append(tone * plateau(length, sample_rate))
    onsets = _onsets(rng, num_samples / sample_rate, step)
    ringing = (onsets + 2 * rng.random()) % 2.0 < 1.0
    warble = _place(num_samples, sample_rate, onsets, notes, ringing.astype(float))
    return _room(rng, warble, sample_rate)


def telephone_bell(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """A clapper between two gongs, twenty to thirty times a second."""
    frequency = rng.uniform(900, 1600)
    gongs = [
        _strike(
            frequency * interval,
            [1.0, 2.63, 4.1, 5.4],
            [1.0, 0.8, 0.6, 0.3],
            [0.4, 0.25, 0.15, 0.1],
            sample_rate,
        )
        for interval in (1.0, 1.26)
    ]
    on, off = rng.uniform(0.8, 2.0), rng.uniform(0.5, 1.2)
    onsets = _onsets(rng, num_samples / sample_rate, 1 / rng.uniform(20, 30))
    ringing = (onsets + 3 * rng.random()) % (on + off) < on
    bell = _place(num_samples, sample_rate, onsets, gongs, ringing.astype(float))
    return _room(rng, bell, sample_rate)


# ------------------------------------------------------------------ sirens and alarms
def siren(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """A vehicle's siren in a street: a slow wail or a quick yelp."""
    wail = rng.random() < 0.6
    rate = rng.uniform(0.25, 0.5) if wail else rng.uniform(2, 4)
    low, high = rng.uniform(500, 700), rng.uniform(1200, 1600)
    swing = _swing(rng, rate, num_samples, sample_rate)
    phase = _phase(low * (high / low) ** swing, num_samples, sample_rate)
    return _room(rng, _series(phase, [1, 0.35, 0.3, 0.15, 0.1]), sample_rate, 0.4)


def civil_defense_siren(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """A rotor of two rows of ports, a minor third apart, that winds up and down."""
    swing = _swing(rng, rng.uniform(0.08, 0.2), num_samples, sample_rate)
    top = rng.uniform(350, 550)
    phase = _phase(top * (0.6 + 0.4 * swing), num_samples, sample_rate)
    weights = [1.0, 0.4, 0.3, 0.15]
    rows = _series(phase, weights) + 0.6 * _series(1.2 * phase, weights)
    return _room(rng, rows, sample_rate, 0.6)


def smoke_detector(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """A piezo at about 3 kHz: the slow beeps of an evacuation signal, or fast ones."""
    phase = _phase(rng.uniform(2800, 3500), num_samples, sample_rate)
    on = 0.5 if rng.random() < 0.5 else rng.uniform(0.1, 0.25)
    off = 0.5 * on if on < 0.5 else 0.5
    gate = _gate(rng, num_samples, sample_rate, on, off, 0.01)
    return _room(rng, gate * _series(phase, [1.0, 0.15, 0.2]), sample_rate)


def whistle(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """A referee's whistle: a trill with breath noise."""
    frequency = rng.uniform(2000, 3800)
    trill = 2 * _swing(rng, rng.uniform(25, 50), num_samples, sample_rate) - 1
    tone = np.sin(_phase(frequency * (1 + 0.03 * trill), num_samples, sample_rate))
    breath = noise(rng, num_samples, sample_rate, 0.8 * frequency, 1.5 * frequency)
    on, off = rng.uniform(0.3, 1.2), rng.uniform(0.3, 1.0)
    gate = _gate(rng, num_samples, sample_rate, on, off, 0.03)
    return _room(rng, gate * (tone * (1 + 0.4 * trill) + 0.1 * breath), sample_rate)


# --------------------------------------------------------------- struck and percussive
def doorbell(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """Two bars, the higher first: ding-dong, twice."""
    frequency = rng.uniform(500, 750)
    ratios, weights, decays = [1, 2.76, 5.4], [1, 0.3, 0.1], [0.6, 0.2, 0.1]
    ding = _strike(1.26 * frequency, ratios, weights, decays, sample_rate)
    dong = _strike(frequency, ratios, weights, decays, sample_rate)
    start, gap = rng.uniform(0.1, 1.0), rng.uniform(0.4, 0.8)
    onsets = start + np.array([0, gap, 2.2, 2.2 + gap])
    return _room(
        rng, _place(num_samples, sample_rate, onsets, [ding, dong]), sample_rate
    )


def wind_chime(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """Six tubes of a pentatonic scale, struck at random."""
    frequency = rng.uniform(900, 1600)
    tubes = [
        _strike(
            frequency * interval,
            [1, 2.76, 5.4],
            [1, 0.6, 0.3],
            [0.9, 0.4, 0.2],
            sample_rate,
        )
        for interval in (1.0, 1.125, 1.25, 1.5, 1.667, 2.0)
    ]
    seconds = num_samples / sample_rate
    count = int(rng.uniform(3, 8) * seconds)
    onsets, gains = rng.uniform(-0.5, seconds, count), rng.uniform(0.1, 1, count)
    return _place(num_samples, sample_rate, onsets, tubes, gains)


def singing_bowl(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """A bronze bowl: few partials, each a pair that beats, and a long decay."""
    bowl = _strike(
        _log_uniform(rng, 120, 400),
        [1, 1.004, 2.7, 2.71, 5.1, 8.0],
        [1, 0.7, 0.6, 0.4, 0.3, 0.1],
        [2.2, 2.2, 1.5, 1.5, 0.7, 0.4],
        sample_rate,
    )
    onsets = _onsets(rng, num_samples / sample_rate, rng.uniform(2, 4))
    return _place(num_samples, sample_rate, onsets, [bowl])


def clicking(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """A button or a switch: pressed, and released more softly a moment later."""
    clicks = []
    for _ in range(4):
        press = _burst(rng, sample_rate, 2000, None, 0.001)
        release = 0.6 * _burst(rng, sample_rate, 2500, None, 0.001)
        pause = np.zeros(int(rng.uniform(0.04, 0.09) * sample_rate))
        clicks.append(np.concatenate([press, pause, release]))
    onsets = _onsets(rng, num_samples / sample_rate, rng.uniform(0.3, 0.7), 0.8)
    gains = rng.uniform(0.5, 1, len(onsets))
    clicks_in_time = _place(num_samples, sample_rate, onsets, clicks, gains)
    return _room(rng, clicks_in_time, sample_rate, 0.1)


def heartbeat(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """Lub-dub, 55 to 110 times a minute."""
    lub = _thud(sample_rate, 90, 45, 0.05)
    dub = 0.7 * _thud(sample_rate, 110, 60, 0.035)
    period = 60 / rng.uniform(55, 110)
    first = _onsets(rng, num_samples / sample_rate, period, 0.02)
    onsets = np.stack([first, first + 0.33 * period], 1).ravel()
    return _place(num_samples, sample_rate, onsets, [lub, dub])


def drum_machine(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """Kick, hat, snare, hat."""
    kick = 2.5 * _thud(sample_rate, 180, 50, 0.12)
    hat = 0.7 * _burst(rng, sample_rate, 7000, None, 0.03)
    snare = 1.5 * _burst(rng, sample_rate, 600, None, 0.06)
    onsets = _onsets(rng, num_samples / sample_rate, rng.uniform(0.18, 0.3))
    return _place(num_samples, sample_rate, onsets, [kick, hat, snare, hat])


def machine_gun(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """Bursts of eight to fourteen shots a second, each overdriven."""
    blast = np.clip(3 * _burst(rng, sample_rate, 80, 2000, 0.03), -2, 2)
    onsets = _onsets(rng, num_samples / sample_rate, 1 / rng.uniform(8, 14))
    on, off = rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.2)
    firing = (onsets + 3 * rng.random()) % (on + off) < on
    shots = _place(num_samples, sample_rate, onsets, [blast], firing.astype(float))
    return _room(rng, shots, sample_rate)


# ------------------------------------------------------------------------------ noises
def white_noise(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """Equal power at every frequency."""
    return noise(rng, num_samples, sample_rate)


def pink_noise(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """Power that falls 3 dB per octave."""
    return noise(rng, num_samples, sample_rate, slope=-1.0)


def rain(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """A bed of noise and hundreds of drops, few of them near."""
    bed = noise(rng, num_samples, sample_rate, 400, 9000, -0.3)
    drops = []
    for _ in range(12):
        decay = rng.uniform(0.001, 0.004)
        drop = _burst(rng, sample_rate, 1000, None, decay)
        phase = _phase(rng.uniform(1500, 8000), len(drop), sample_rate)
        envelope = np.exp(-_times(len(drop), sample_rate) / decay)
        drops.append(drop + envelope * np.sin(phase))
    seconds = num_samples / sample_rate
    count = int(rng.uniform(60, 300) * seconds)
    onsets, gains = rng.uniform(0, seconds, count), 6 * rng.random(count) ** 3
    return bed + _place(num_samples, sample_rate, onsets, drops, gains)


def waves(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """Surf that comes and goes every few seconds."""
    swell = _swing(rng, rng.uniform(0.15, 0.4), num_samples, sample_rate)
    surf = noise(rng, num_samples, sample_rate, 100, 4000, -0.7)
    return surf * (0.15 + np.square(swell))


# ------------------------------------------------------------ machines and instruments
def helicopter(
    rng: np.random.Generator, num_samples: int, sample_rate: int
) -> Waveform:
    """Blades that chop the air eleven to seventeen times a second, and an engine."""
    blade = _swing(rng, rng.uniform(11, 17), num_samples, sample_rate)
    wind = noise(rng, num_samples, sample_rate, 40, 1500, -1.0)
    return (0.2 + np.square(np.square(blade))) * wind


def theremin(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """A near-pure tone that glides from note to note with vibrato."""
    glide = 0.6 * _wander(rng, num_samples, 8)
    vibrato = 0.08 * _swing(rng, rng.uniform(5, 7), num_samples, sample_rate)
    frequency = rng.uniform(350, 800) * 2 ** (glide + vibrato)
    return _series(_phase(frequency, num_samples, sample_rate), [1.0, 0.3, 0.1])


def organ(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Waveform:
    """Major chords on drawbars, in the order I, IV, V, I."""
    tonic = rng.uniform(130, 260)
    length = int(rng.uniform(0.9, 1.4) * sample_rate)
    chords = []
    for degree in (0, 5, 7):
        chord = np.zeros(length)
        for step in (0, 4, 7, 12):
            phase = _phase(tonic * 2 ** ((degree + step) / 12), length, sample_rate)
            chord += _series(phase, [1, 0.8, 0.3, 0.5])
        chords.append(chord * plateau(length, sample_rate, 0.05))
    order = [*chords, chords[0]]
    onsets = _onsets(rng, num_samples / sample_rate, 0.97 * length / sample_rate)
    return _room(rng, _place(num_samples, sample_rate, onsets, order), sample_rate)


# AudioSet's display names. This order sets the first class of a clip: keep it.
SOUNDS: dict[str, Sound] = {
    "Sine wave": sine_wave,
    "Chirp tone": chirp_tone,
    "Beep, bleep": beep,
    "Telephone dialing, DTMF": dtmf,
    "Busy signal": busy_signal,
    "Ringtone": ringtone,
    "Telephone bell ringing": telephone_bell,
    "Siren": siren,
    "Civil defense siren": civil_defense_siren,
    "Smoke detector, smoke alarm": smoke_detector,
    "Whistle": whistle,
    "Doorbell": doorbell,
    "Wind chime": wind_chime,
    "Singing bowl": singing_bowl,
    "Clicking": clicking,
    "Heart sounds, heartbeat": heartbeat,
    "Drum machine": drum_machine,
    "Machine gun": machine_gun,
    "White noise": white_noise,
    "Pink noise": pink_noise,
    "Rain": rain,
    "Waves, surf": waves,
    "Helicopter": helicopter,
    "Theremin": theremin,
    "Organ": organ,
}
