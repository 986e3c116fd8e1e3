package translator

import (
	"maps"
	"slices"
	"strings"

	"crishim/engine"
)

// ipcSysctls are the sysctls of the IPC namespace besides fs.mqueue.*; those of the network namespace are all of net.*.
// No other sysctl is the pod's own.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
	"kernel.shm_rmid_forced",
}

// sysctls accepts those of namespaces that the pod has for itself (CRI-O CVE-2022-0532, CVE-2022-0811). Those of interfaces that
// only come with the pod's network are told apart.
func sysctls(p *problems, in map[string]string, n *engine.Namespaces) (all, ofInterfaces map[string]string) {
	const field = "linux.sysctls"
	for _, key := range slices.Sorted(maps.Keys(in)) {
		value := in[key]
		if !validSysctlValue(value) {
			p.add(field+"["+clip(key)+"]", "%.80q is no value of a sysctl", value)
		}
		switch {
		case !validSysctlKey(key):
			p.add(field, "%.80q is no name of a sysctl, such as \"net.ipv4.tcp_syncookies\"", key)
		case strings.HasPrefix(key, "net."):
			if n.Network == engine.NamespaceNode {
				p.add(field, "%s would change the host: the pod uses its network namespace", key)
			}
		case strings.HasPrefix(key, "fs.mqueue."), slices.Contains(ipcSysctls, key):
			if n.IPC == engine.NamespaceNode {
				p.add(field, "%s would change the host: the pod uses its ipc namespace", key)
			}
		default:
			p.add(field, "%s belongs to no namespace of a pod; allowed are net.*, fs.mqueue.* and %s", key, strings.Join(ipcSysctls, ", "))
		}
	}
	for key, value := range in {
		of := &all
		if ofInterface(key) {
			of = &ofInterfaces
		}
		if *of == nil {
			*of = map[string]string{}
		}
		(*of)[key] = value
	}
	return all, ofInterfaces
}

// ofInterface knows net.FAMILY.conf.INTERFACE.NAME and net.FAMILY.neigh.INTERFACE.NAME.
func ofInterface(key string) bool {
	words := strings.Split(key, ".")
	return len(words) == 5 && words[0] == "net" && (words[2] == "conf" || words[2] == "neigh") &&
		words[3] != "all" && words[3] != "default" && words[3] != "lo"
}

// validSysctlKey asks for words joined by dots. The form with slashes is not taken: it allows "/../".
func validSysctlKey(key string) bool {
	for word := range strings.SplitSeq(key, ".") {
		if word == "" || !onlyRunes(word, func(r rune) bool { return isAlnum(r) || r == '_' || r == '-' }) {
			return false
		}
	}
	return len(key) <= maxName && strings.Contains(key, ".")
}

// validSysctlValue lets numbers, words and lists of them pass; lists are separated by a space or a tab.
func validSysctlValue(value string) bool {
	return len(value) <= 4096 && strings.TrimSpace(value) != "" && onlyRunes(value, func(r rune) bool { return r == '\t' || (r >= ' ' && r < 0x7f) })
}
