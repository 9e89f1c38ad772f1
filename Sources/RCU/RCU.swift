// RCU
