"""A module of somebody's own, with functions that make teachers, good and bad."""

OWN = """
import os, time, torch

class Net(torch.nn.Module):
    sample_rate = 16000
    labels = ["dog", "cat"]

    def forward(self, waveform):
        time.sleep(float(os.environ.get("SLOW_TEACHER", 0)))
        return waveform[:, :32].unflatten(1, (2, 16)).sum(dim=2)

def make():
    return Net()

def make_short():
    net = Net()
    net.forward = lambda waveform: waveform[:, :3]
    return net

def make_three():
    net = Net()
    net.labels = ["/m/a", "/m/b", "/m/c"]
    net.forward = lambda waveform: waveform[:, :3]
    return net

def make_slow():
    net = Net()
    net.sample_rate = 8000
    return net

def make_silent():
    return torch.nn.Identity()

def make_mute():
    return 7

def make_unnamed():
    net = torch.nn.Identity()
    net.sample_rate, net.labels = 16000, "dog"
    return net

made = Net()
"""
