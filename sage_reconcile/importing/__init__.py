"""`sage import`: engines that were started by hand, as a stack file."""
