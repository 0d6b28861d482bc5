"""Synthesises sounds of AudioSet classes with NumPy.

Every sound takes a `Synth` and returns [N] float64, under one contract: it is a pure
function of the `Synth` (all randomness comes from it), its level is arbitrary (the
mixing sets it), and no two seconds of it are silent.

Frequencies are in Hz, times in seconds. `SOUNDS`, at the end, lists all of them. A
published AudioSet model recognises each: before adding one, check what such a model
predicts for it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float64]

# ITU-T Q.23: each key is a tone of its row plus a tone of its column (Hz).
DTMF_ROWS = (697.0, 770.0, 852.0, 941.0)
DTMF_COLUMNS = (1209.0, 1336.0, 1477.0)


class Synth:
    """Makes the parts of one sound.

    Arguments
    ---------
    rng : np.random.Generator
        Source of all randomness.
    num_samples : int
        Length of the sound; parts that take ``length`` may be shorter.
    sample_rate : int
        Hz.
    """

    def __init__(
        self, rng: np.random.Generator, num_samples: int, sample_rate: int
    ) -> None:
        self.rng = rng
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.seconds = num_samples / sample_rate
        self.uniform = rng.uniform

    def times(self, length: int) -> Waveform:
        """Returns the time of every sample, in seconds."""
        return np.arange(length, dtype=np.float64) / self.sample_rate

    def log_uniform(self, low: float, high: float) -> float:
        """Draws a frequency or a rate, spread evenly over octaves."""
        return float(low * (high / low) ** self.rng.random())

    def phase(self, frequency: float | Waveform, length: int | None = None) -> Waveform:
        """Returns an oscillator's phase, in radians, of a fixed or moving frequency."""
        if isinstance(frequency, float):
            samples = np.arange(length or self.num_samples, dtype=np.float64)
            return 2 * np.pi * frequency / self.sample_rate * samples
        return 2 * np.pi / self.sample_rate * np.cumsum(frequency)

    def swing(self, frequency: float) -> Waveform:
        """Returns a slow sine between 0 and 1, from a random phase on."""
        start = self.uniform(0, 2 * np.pi)
        return 0.5 + 0.5 * np.sin(self.phase(frequency) + start)

    def wander(self, points: int) -> Waveform:
        """Returns a slow random curve in [-1, 1] through `points` random values."""
        places = np.linspace(0, points - 1, self.num_samples)
        return np.interp(places, np.arange(points), self.uniform(-1, 1, points))

    def noise(
        self,
        low: float = 20.0,
        high: float | None = None,
        slope: float = 0.0,
        length: int | None = None,
    ) -> Waveform:
        """Makes noise of unit RMS and power ``frequency ** slope`` within a band.

        It is drawn as a spectrum, so that a filter costs no second transform and has no
        transient. Real and imaginary parts are uniform, but so many that samples are
        Gaussian. Power falls off outside the band from ``low`` to ``high``.
        """
        length = length or self.num_samples
        bins = length // 2 + 1
        frequency = np.maximum(np.arange(bins), 0.5) * (self.sample_rate / length)
        power = 1 / (1 + np.square(np.square(low / frequency)))
        if high is not None:
            power /= 1 + np.square(np.square(frequency / high))
        if slope:
            power *= (frequency / 1000) ** slope
        parts = self.rng.random(2 * bins) - 0.5
        spectrum = parts.view(np.complex128) * np.sqrt(power)
        wave = np.fft.irfft(spectrum, length)
        return wave / np.sqrt(np.mean(np.square(wave)))

    def onsets(self, period: float, jitter: float = 0.0) -> Waveform:
        """Draws the times (s) of a repeated event, from within a period before 0."""
        count = int(self.seconds / period) + 2
        regular = (np.arange(count) - 0.9 * self.rng.random()) * period
        return regular + jitter * period * self.uniform(-0.5, 0.5, count)

    def place(
        self,
        onsets: Waveform,
        events: Sequence[Waveform],
        gains: Waveform | None = None,
    ) -> Waveform:
        """Adds the events, taken in turn, at their onsets (s), cut at the edges."""
        out = np.zeros(self.num_samples)
        for index, onset in enumerate(onsets):
            event = events[index % len(events)]
            start = int(np.floor(onset * self.sample_rate))
            first, last = max(start, 0), min(start + len(event), self.num_samples)
            if last > first:
                gain = 1.0 if gains is None else gains[index]
                out[first:last] += gain * event[first - start : last - start]
        return out

    def plateau(self, length: int, fade: float = 0.004) -> Waveform:
        """Returns an envelope of 1, faded in and out in `fade` seconds."""
        edge = np.arange(length) + 0.5
        return np.minimum(1.0, np.minimum(edge, edge[::-1]) / (fade * self.sample_rate))

    def gate(self, on: float, off: float, fade: float = 0.004) -> Waveform:
        """Returns an envelope, open for `on` seconds and shut for `off`, in turn."""
        event = self.plateau(int(on * self.sample_rate), fade)
        return self.place(self.onsets(on + off), [event])

    def room(self, wave: Waveform, wet: float = 0.3) -> Waveform:
        """Adds a room's sparse, decaying echoes, at a tenth of a convolution's cost."""
        out = wave.copy()
        decay = self.uniform(0.05, 0.25)
        for delay in 0.004 + self.rng.exponential(decay, 14):
            shift = int(delay * self.sample_rate)
            gain = wet * np.exp(-delay / decay) * (1 if self.rng.random() < 0.5 else -1)
            if shift < len(wave):
                out[shift:] += gain * wave[: len(wave) - shift]
        return out

    def strike(
        self,
        frequency: float,
        ratios: Sequence[float],
        weights: Sequence[float],
        decays: Sequence[float],
    ) -> Waveform:
        """Makes a struck body: partials at ratios of `frequency`; `decays` in s."""
        time = self.times(int(1.5 * max(decays) * self.sample_rate))
        out = np.zeros_like(time)
        for ratio, weight, decay in zip(ratios, weights, decays, strict=True):
            # Each partial ends after six of its own decays, which are 52 dB.
            part = time[: int(6 * decay * self.sample_rate)]
            if ratio * frequency < self.sample_rate / 2:
                tone = np.sin(2 * np.pi * ratio * frequency * part)
                out[: len(part)] += weight * np.exp(-part / decay) * tone
        return out * np.minimum(1.0, time / 0.001) * np.minimum(1.0, time[::-1] / 0.1)

    def burst(self, low: float, high: float | None, decay: float) -> Waveform:
        """Makes noise that starts at once and decays in `decay` seconds."""
        time = self.times(int(8 * decay * self.sample_rate))
        return np.exp(-time / decay) * self.noise(low, high, length=len(time))

    def thud(self, start: float, end: float, decay: float) -> Waveform:
        """Makes a low knock whose pitch falls from `start` to `end` Hz."""
        time = self.times(int(6 * decay * self.sample_rate))
        frequency = end + (start - end) * np.exp(-time / (0.4 * decay))
        envelope = np.exp(-time / decay) * np.minimum(1.0, time / 0.004)
        return envelope * np.sin(self.phase(frequency))


def _series(phase: Waveform, weights: Sequence[float] | Waveform) -> Waveform:
    """Computes ``sum_k weights[k] sin((k + 1) phase)`` by Clenshaw's recurrence."""
    twice_cosine = 2 * np.cos(phase)
    above, current = np.zeros_like(phase), np.zeros_like(phase)
    for weight in weights[::-1]:
        above, current = current, weight + twice_cosine * current - above
    return np.sin(phase) * current


# --------------------------------------------------------------- tones and telephones
def sine_wave(synth: Synth) -> Waveform:
    """One steady tone."""
    frequency = synth.log_uniform(60, 900)
    return np.sin(synth.phase(frequency) + synth.uniform(0, 6))


def chirp_tone(synth: Synth) -> Waveform:
    """A tone that sweeps several octaves, evenly in Hz, up or down."""
    start, end = synth.uniform(80, 400), synth.uniform(3000, 10000)
    if synth.rng.random() < 0.5:
        start, end = end, start
    frequency = np.linspace(start, end, synth.num_samples)
    return np.sin(synth.phase(frequency))


def beep(synth: Synth) -> Waveform:
    """Short electronic tones with longer pauses."""
    frequency = synth.log_uniform(1000, 2000)
    on, off = synth.uniform(0.05, 0.15), synth.uniform(0.4, 1.2)
    tone = _series(synth.phase(frequency), [1.0, 0.2, 0.2])
    return tone * synth.gate(on, off)


def dtmf(synth: Synth) -> Waveform:
    """A number being dialled, every key a pair of tones."""
    on, off = synth.uniform(0.08, 0.22), synth.uniform(0.05, 0.2)
    length = int(on * synth.sample_rate)
    onsets = synth.onsets(on + off)
    keys = []
    for _ in onsets:
        row = np.sin(synth.phase(DTMF_ROWS[synth.rng.integers(4)], length))
        column = np.sin(synth.phase(DTMF_COLUMNS[synth.rng.integers(3)], length))
        keys.append(synth.plateau(length) * (row + 1.2 * column))
    return synth.place(onsets, keys)


def busy_signal(synth: Synth) -> Waveform:
    """A busy line: as long on as off (ITU-T E.180: 480 and 620, or 425 Hz)."""
    pair = ((480.0, 620.0), (480.0, 620.0), (425.0, 425.0))[synth.rng.integers(3)]
    on, detune = synth.uniform(0.22, 0.52), synth.uniform(0.99, 1.01)
    low = np.sin(synth.phase(pair[0] * detune))
    high = np.sin(synth.phase(pair[1] * detune))
    return (low + high) * synth.gate(on, on)


def ringtone(synth: Synth) -> Waveform:
    """An electronic ringer: a fast warble of two notes, one second in every two."""
    step = synth.uniform(0.05, 0.08)
    note, interval = synth.log_uniform(800, 1500), synth.uniform(1.19, 1.34)
    length = int(step * synth.sample_rate)
    notes = []
    for frequency in (note, note * interval):
        tone = _series(synth.phase(frequency, length), [1, 0.2, 0.3, 0.1, 0.1])
        notes.append(tone * synth.plateau(length))
    onsets = synth.onsets(step)
    ringing = (onsets + 2 * synth.rng.random()) % 2.0 < 1.0
    warble = synth.place(onsets, notes, ringing.astype(float))
    return synth.room(warble)


def telephone_bell(synth: Synth) -> Waveform:
    """A clapper between two gongs, twenty to thirty times a second."""
    frequency = synth.uniform(900, 1600)
    ratios, weights = [1.0, 2.63, 4.1, 5.4], [1.0, 0.8, 0.6, 0.3]
    decays = [0.4, 0.25, 0.15, 0.1]
    gongs = [
        synth.strike(frequency * interval, ratios, weights, decays)
        for interval in (1.0, 1.26)
    ]
    on, off = synth.uniform(0.8, 2.0), synth.uniform(0.5, 1.2)
    onsets = synth.onsets(1 / synth.uniform(20, 30))
    ringing = (onsets + 3 * synth.rng.random()) % (on + off) < on
    bell = synth.place(onsets, gongs, ringing.astype(float))
    return synth.room(bell)


# ------------------------------------------------------------------ sirens and alarms
def siren(synth: Synth) -> Waveform:
    """A vehicle's siren in a street: a slow wail or a quick yelp."""
    wail = synth.rng.random() < 0.6
    rate = synth.uniform(0.25, 0.5) if wail else synth.uniform(2, 4)
    low, high = synth.uniform(500, 700), synth.uniform(1200, 1600)
    swing = synth.swing(rate)
    phase = synth.phase(low * (high / low) ** swing)
    return synth.room(_series(phase, [1, 0.35, 0.3, 0.15, 0.1]), 0.4)


def civil_defense_siren(synth: Synth) -> Waveform:
    """A rotor of two rows of ports, a minor third apart, that winds up and down."""
    swing = synth.swing(synth.uniform(0.08, 0.2))
    top = synth.uniform(350, 550)
    phase = synth.phase(top * (0.6 + 0.4 * swing))
    weights = [1.0, 0.4, 0.3, 0.15]
    rows = _series(phase, weights) + 0.6 * _series(1.2 * phase, weights)
    return synth.room(rows, 0.6)


def smoke_detector(synth: Synth) -> Waveform:
    """A piezo at about 3 kHz: the slow beeps of an evacuation signal, or fast ones."""
    phase = synth.phase(synth.uniform(2800, 3500))
    on = 0.5 if synth.rng.random() < 0.5 else synth.uniform(0.1, 0.25)
    off = 0.5 * on if on < 0.5 else 0.5
    gate = synth.gate(on, off, 0.01)
    return synth.room(gate * _series(phase, [1.0, 0.15, 0.2]))


def whistle(synth: Synth) -> Waveform:
    """A referee's whistle: a trill with breath noise."""
    frequency = synth.uniform(2000, 3800)
    trill = 2 * synth.swing(synth.uniform(25, 50)) - 1
    tone = np.sin(synth.phase(frequency * (1 + 0.03 * trill)))
    breath = synth.noise(0.8 * frequency, 1.5 * frequency)
    on, off = synth.uniform(0.3, 1.2), synth.uniform(0.3, 1.0)
    gate = synth.gate(on, off, 0.03)
    return synth.room(gate * (tone * (1 + 0.4 * trill) + 0.1 * breath))


# --------------------------------------------------------------- struck and percussive
def doorbell(synth: Synth) -> Waveform:
    """Two bars, the higher first: ding-dong, twice."""
    frequency = synth.uniform(500, 750)
    ratios, weights, decays = [1, 2.76, 5.4], [1, 0.3, 0.1], [0.6, 0.2, 0.1]
    ding = synth.strike(1.26 * frequency, ratios, weights, decays)
    dong = synth.strike(frequency, ratios, weights, decays)
    start, gap = synth.uniform(0.1, 1.0), synth.uniform(0.4, 0.8)
    onsets = start + np.array([0, gap, 2.2, 2.2 + gap])
    return synth.room(synth.place(onsets, [ding, dong]))


def wind_chime(synth: Synth) -> Waveform:
    """Six tubes of a pentatonic scale, struck at random."""
    frequency = synth.uniform(900, 1600)
    ratios, weights, decays = [1, 2.76, 5.4], [1, 0.6, 0.3], [0.9, 0.4, 0.2]
    tubes = [
        synth.strike(frequency * interval, ratios, weights, decays)
        for interval in (1.0, 1.125, 1.25, 1.5, 1.667, 2.0)
    ]
    seconds = synth.seconds
    count = int(synth.uniform(3, 8) * seconds)
    onsets, gains = synth.uniform(-0.5, seconds, count), synth.uniform(0.1, 1, count)
    return synth.place(onsets, tubes, gains)


def singing_bowl(synth: Synth) -> Waveform:
    """A bronze bowl: few partials, each a pair that beats, and a long decay."""
    bowl = synth.strike(
        synth.log_uniform(120, 400),
        [1, 1.004, 2.7, 2.71, 5.1, 8.0],
        [1, 0.7, 0.6, 0.4, 0.3, 0.1],
        [2.2, 2.2, 1.5, 1.5, 0.7, 0.4],
    )
    onsets = synth.onsets(synth.uniform(2, 4))
    return synth.place(onsets, [bowl])


def clicking(synth: Synth) -> Waveform:
    """A button or a switch: pressed, and released more softly a moment later."""
    clicks = []
    for _ in range(4):
        press = synth.burst(2000, None, 0.001)
        release = 0.6 * synth.burst(2500, None, 0.001)
        pause = np.zeros(int(synth.uniform(0.04, 0.09) * synth.sample_rate))
        clicks.append(np.concatenate([press, pause, release]))
    onsets = synth.onsets(synth.uniform(0.3, 0.7), 0.8)
    gains = synth.uniform(0.5, 1, len(onsets))
    clicks_in_time = synth.place(onsets, clicks, gains)
    return synth.room(clicks_in_time, 0.1)


def heartbeat(synth: Synth) -> Waveform:
    """Lub-dub, 55 to 110 times a minute."""
    lub = synth.thud(90, 45, 0.05)
    dub = 0.7 * synth.thud(110, 60, 0.035)
    period = 60 / synth.uniform(55, 110)
    first = synth.onsets(period, 0.02)
    onsets = np.stack([first, first + 0.33 * period], 1).ravel()
    return synth.place(onsets, [lub, dub])


def drum_machine(synth: Synth) -> Waveform:
    """Kick, hat, snare, hat."""
    kick = 2.5 * synth.thud(180, 50, 0.12)
    hat = 0.7 * synth.burst(7000, None, 0.03)
    snare = 1.5 * synth.burst(600, None, 0.06)
    onsets = synth.onsets(synth.uniform(0.18, 0.3))
    return synth.place(onsets, [kick, hat, snare, hat])


def machine_gun(synth: Synth) -> Waveform:
    """Bursts of eight to fourteen shots a second, each overdriven."""
    blast = np.clip(3 * synth.burst(80, 2000, 0.03), -2, 2)
    onsets = synth.onsets(1 / synth.uniform(8, 14))
    on, off = synth.uniform(0.6, 1.0), synth.uniform(0.4, 1.2)
    firing = (onsets + 3 * synth.rng.random()) % (on + off) < on
    shots = synth.place(onsets, [blast], firing.astype(float))
    return synth.room(shots)


# ------------------------------------------------------------------------------ noises
def white_noise(synth: Synth) -> Waveform:
    """Equal power at every frequency."""
    return synth.noise()


def pink_noise(synth: Synth) -> Waveform:
    """Power that falls 3 dB per octave."""
    return synth.noise(slope=-1.0)


def rain(synth: Synth) -> Waveform:
    """A bed of noise and hundreds of drops, few of them near."""
    bed = synth.noise(400, 9000, -0.3)
    drops = []
    for _ in range(12):
        decay = synth.uniform(0.001, 0.004)
        drop = synth.burst(1000, None, decay)
        phase = synth.phase(synth.uniform(1500, 8000), len(drop))
        envelope = np.exp(-synth.times(len(drop)) / decay)
        drops.append(drop + envelope * np.sin(phase))
    seconds = synth.seconds
    count = int(synth.uniform(60, 300) * seconds)
    onsets, gains = synth.uniform(0, seconds, count), 6 * synth.rng.random(count) ** 3
    return bed + synth.place(onsets, drops, gains)


def waves(synth: Synth) -> Waveform:
    """Surf that comes and goes every few seconds."""
    swell = synth.swing(synth.uniform(0.15, 0.4))
    surf = synth.noise(100, 4000, -0.7)
    return surf * (0.15 + np.square(swell))


# ------------------------------------------------------------ machines and instruments
def helicopter(synth: Synth) -> Waveform:
    """Blades that chop the air eleven to seventeen times a second, and an engine."""
    blade = synth.swing(synth.uniform(11, 17))
    wind = synth.noise(40, 1500, -1.0)
    return (0.2 + np.square(np.square(blade))) * wind


def theremin(synth: Synth) -> Waveform:
    """A near-pure tone that glides from note to note with vibrato."""
    glide = 0.6 * synth.wander(8)
    vibrato = 0.08 * synth.swing(synth.uniform(5, 7))
    frequency = synth.uniform(350, 800) * 2 ** (glide + vibrato)
    return _series(synth.phase(frequency), [1.0, 0.3, 0.1])


def organ(synth: Synth) -> Waveform:
    """Major chords on drawbars, in the order I, IV, V, I."""
    tonic = synth.uniform(130, 260)
    length = int(synth.uniform(0.9, 1.4) * synth.sample_rate)
    chords = []
    for degree in (0, 5, 7):
        chord = np.zeros(length)
        for step in (0, 4, 7, 12):
            phase = synth.phase(tonic * 2 ** ((degree + step) / 12), length)
            chord += _series(phase, [1, 0.8, 0.3, 0.5])
        chords.append(chord * synth.plateau(length, 0.05))
    order = [*chords, chords[0]]
    onsets = synth.onsets(0.97 * length / synth.sample_rate)
    return synth.room(synth.place(onsets, order))


# AudioSet's display names. This order sets the first class of a clip: keep it.
SOUNDS: dict[str, Callable[[Synth], Waveform]] = {
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
