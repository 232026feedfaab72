"""Authentication and authorisation.

``ca`` issues certificates, ``tokens`` makes join tokens for servers, ``enrolment`` and ``renewal`` hand out
certificates, ``identities`` reads the identity in a certificate, ``gate`` checks each call.

``serve``, ``link``, ``operators``, ``providers`` and ``cli`` import it.
"""
