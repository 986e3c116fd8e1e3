// Package vm owns the tests that want a whole host: the Debian package installed and run by systemd, cgroup v2 with the
// systemd driver, AppArmor. `make test-vm` runs them in a virtual machine; elsewhere they are skipped.
package vm
