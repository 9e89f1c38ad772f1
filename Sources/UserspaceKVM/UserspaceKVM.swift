// UserspaceKVM
