package preflight

import (
	"cmp"
	"slices"
	"time"
)

// Severity is how much a finding matters. Its values are in order.
type Severity string

// The severities.
const (
	Note Severity = "note" // good to know
	Do   Severity = "do"   // has to be done, or accepted, before the switch
	Stop Severity = "stop" // this node cannot be switched
)

// The verdicts, which are exit statuses.
const (
	Ready  = 0
	ToDo   = 1
	Cannot = 2
)

// Finding is one thing that was found. ID is a stable word, explained in docs/migration.md.
type Finding struct {
	Severity Severity `json:"severity"`
	ID       string   `json:"id"`
	Subject  string   `json:"subject,omitempty"` // a pod, a file, a container
	Message  string   `json:"message"`
	Fix      string   `json:"fix,omitempty"`
}

// Report is what an operator reads.
type Report struct {
	Node     string     `json:"node"`
	Verdict  int        `json:"verdict"` // Ready, ToDo or Cannot
	Findings []Finding  `json:"findings"`
	Engine   EngineRow  `json:"engine"`
	Kubelet  KubeletRow `json:"kubelet"`
	Pods     []Pod      `json:"pods"`
	Images   []ImageRow `json:"images"`
	// Foreign is how many containers are not Kubernetes' and stay untouched.
	Foreign int `json:"foreignContainers"`
}

// EngineRow is the Docker Engine in short.
type EngineRow struct {
	Version        string   `json:"version,omitempty"`
	APIVersion     string   `json:"apiVersion,omitempty"`
	CgroupDriver   string   `json:"cgroupDriver,omitempty"`
	CgroupVersion  string   `json:"cgroupVersion,omitempty"`
	StorageDriver  string   `json:"storageDriver,omitempty"`
	LogDriver      string   `json:"logDriver,omitempty"`
	LiveRestore    bool     `json:"liveRestore"`
	Runtimes       []string `json:"runtimes,omitempty"`
	DefaultRuntime string   `json:"defaultRuntime,omitempty"`
}

// KubeletRow is the kubelet in short, with the files that the switch edits.
type KubeletRow struct {
	Version      string    `json:"version,omitempty"`
	CgroupDriver string    `json:"cgroupDriver,omitempty"`
	Endpoint     string    `json:"endpoint,omitempty"`
	Where        string    `json:"where,omitempty"` // the endpoint is set there
	Shim         string    `json:"shim,omitempty"`  // dockershim, cri-dockerd, crishim or ""
	Edits        []EditRow `json:"edits,omitempty"`
}

// EditRow is one file that the switch edits, and how.
type EditRow struct {
	Path string   `json:"path"`
	New  bool     `json:"new,omitempty"`
	Why  []string `json:"why"`
}

// The decisions of a kubelet about a pod.
const (
	Keep    = "keep"    // nothing happens to it
	Restart = "restart" // it is stopped and made anew
	Collect = "collect" // it has ended: its remains are removed in time, as ever
)

// Pod is one sandbox with its containers.
type Pod struct {
	ID        string    `json:"id"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	Attempt   uint32    `json:"attempt"`
	Ready     bool      `json:"ready"`
	Created   time.Time `json:"created"`
	IPs       []string  `json:"ips,omitempty"`
	Ports     int       `json:"hostPorts"` // how many
	Adoptable bool      `json:"adoptable"`
	// Why says why not, or what is lost.
	Why []string `json:"why,omitempty"`
	// Kubelet is Keep, Restart or Collect; KubeletWhy says why it is not kept.
	Kubelet    string      `json:"kubelet"`
	KubeletWhy string      `json:"kubeletWhy,omitempty"`
	Containers []Container `json:"containers"`
}

// Container is one container of a pod.
type Container struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Attempt   uint32 `json:"attempt"`
	State     string `json:"state"`
	LogDriver string `json:"logDriver"`
	Adoptable bool   `json:"adoptable"`
	Why       string `json:"why,omitempty"`
	Kubelet   string `json:"kubelet"`
}

// ImageRow is one image.
type ImageRow struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	Size int64  `json:"size"` // bytes
	Used int    `json:"used"` // by how many containers
}

// conclude sorts the findings, the worst first, and draws the verdict.
func (r *Report) conclude() {
	rank := map[Severity]int{Stop: 0, Do: 1, Note: 2}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	r.Verdict = Ready
	if len(r.Findings) > 0 {
		r.Verdict = map[Severity]int{Stop: Cannot, Do: ToDo, Note: Ready}[r.Findings[0].Severity]
	}
}
