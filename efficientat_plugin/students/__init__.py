"""Students: small networks with one contract.

``forward([B, 1, F, T]) -> StudentOutput``; a student is built without touching
disk or network, and :mod:`.weights` fills it with published weights.
"""
