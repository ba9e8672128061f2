"""Anonymizing data sets on many machines: the parts of a run (`parts`), and what spreads them (`ray_engine`).

`parts` knows nothing of Ray: a part is read, anonymized and committed by one process, and may be done twice by
accident without a picture being there twice.
"""
