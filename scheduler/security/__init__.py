"""Who is who, and who may do what.

``ca`` issues certificates, ``tokens`` let servers join, ``enrolment`` and ``renewal`` hand certificates out,
``identities`` is what a certificate says, ``gate`` checks each call.
"""
