"""`sage doctor`: what of this host could keep engines from running, each with what to do next."""
