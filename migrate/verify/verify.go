// Package verify finds what dead pods have left on a node: pause containers, results and addresses of CNI, rules for host
// ports, links to logs.
//
// Gather reads, Examine decides without asking anybody, and a Fixer mends. Something is called stale only where it is proved
// to be a Kubernetes pod's, by its own words, and that pod is not among those that Docker, crishim's records or crishim's
// answers know; what looks the same and may be another runtime's is told, and left alone.
package verify

import (
	"crishim/engine/docker/survey"
)

// The kinds of problems.
const (
	Sandbox   = "sandbox"    // a pause container that no pod of the kubelet wants
	CNIResult = "cni-result" // a pod's entry in a cache of libcni
	Address   = "address"    // a reservation of host-local
	DNAT      = "dnat"       // portmap's rules
	HostPort  = "host-port"  // dockershim's rules
	LogLink   = "log-link"   // a link to a log that is gone
)

// Problem is one thing that is left over.
type Problem struct {
	Kind    string `json:"kind"`
	Subject string `json:"subject"` // a path, a chain, a container
	Message string `json:"message"`
	Mend    string `json:"mend"`
	// Proved says that it is a dead Kubernetes pod's for sure: only such are mended.
	Proved bool `json:"proved"`
	// Mended is set by Fix.
	Mended bool   `json:"mended,omitempty"`
	Failed string `json:"failed,omitempty"`

	fix fix
}

// fix is what a Fixer needs to know.
type fix struct {
	id     string // a pod's
	dir    string // a cache
	path   string
	family string
	script string
}

// Node is what was found. Leftovers were read before what lives: a pod that was made meanwhile is known.
type Node struct {
	Results    []Result
	Addresses  []Reservation
	NAT        map[string]string // by family
	BrokenLogs []string
	// Live is every id of a pod that Docker, the records or the daemon know.
	Live map[string]bool
	// Named are the pods, as NAMESPACE/NAME, that are among them.
	Named map[string]bool
	// Foreign are ids that another runtime has, or a crishim that this configuration is not of, with where.
	Foreign map[string]string
	// Containers are Docker's. PodDirs are the UIDs that the kubelet has folders for; nil where that is not known.
	Containers []survey.Container
	PodDirs    map[string]bool
	// Network is the one that pods are attached to now.
	Network string
}

// Result is a pod's entry in a cache of libcni.
type Result struct {
	Dir, ID, Network, Path string
	// Pod is NAMESPACE/NAME as its arguments say; "" is not a Kubernetes pod's.
	Pod string
	Old bool // it was written a while ago
}

// Reservation is an address that host-local keeps.
type Reservation struct {
	Network, IP, ID, Path string
	Old                   bool
}
