"""The scheduler, block manager and policies of the engine with a cost model in place of tensors.

``profile`` says what a step costs on some machine, ``offline`` runs traces in virtual time, ``runner`` and ``serving``
make a server of it in real time, ``calibrate`` fits a profile to a measured run, ``paper`` repeats the PagedAttention
paper's experiments.
"""
