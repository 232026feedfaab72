"""The simulator: the real controller and the real agents' state under one seeded virtual clock.

``clock`` makes an hour pass in seconds; ``journal`` is a disk that can be full and lose what was not yet durable;
``network`` delays, drops, repeats, reorders and cuts; ``host`` is a machine whose cells outlive its agent;
``laws`` checks the promises after every durable record; ``simulation`` makes trouble by seed, then calm, and expects
the fleet to converge. The product has no branch for any of this: only its ports are other ones.

``PYTHONHASHSEED=0 SIM_SEEDS=17 pytest tests/sim`` replays seed 17 exactly.
"""
