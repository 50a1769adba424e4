"""`make bench`: what a delivery, a connect and an idle client cost, beside other servers on this machine."""
