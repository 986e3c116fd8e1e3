// Package compare asks two CRI endpoints the same questions and tells, field by field, where their answers differ: the old
// shim and the one that is to take its place, before a kubelet is switched.
//
// A caller uses Endpoints. What the kubelet decides by must be equal (Difference.Decides); the rest is told for people.
package compare

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Difference is one field in which the answers about one object differ.
type Difference struct {
	Object string `json:"object"` // "pod default/web 58d180bc114d"
	Field  string `json:"field"`  // "network.ip", "" where one side does not have the object
	Old    string `json:"old"`
	New    string `json:"new"`
	// Decides says that the kubelet goes by it: it would restart, or lose sight of, something.
	Decides bool `json:"decides"`
}

// Result is a comparison.
type Result struct {
	Pods        int          `json:"pods"`
	Containers  int          `json:"containers"`
	Images      int          `json:"images"`
	Differences []Difference `json:"differences"`
}

// Same says that nothing differs that the kubelet decides by.
func (r *Result) Same() bool {
	return !slices.ContainsFunc(r.Differences, func(d Difference) bool { return d.Decides })
}

// tries is how often both are asked while they differ in what matters: containers end and start meanwhile.
const tries = 4

// pause is between two tries.
const pause = 2 * time.Second

// Endpoints asks both. Each is unix:///PATH, and speaks runtime.v1 or v1alpha2.
func Endpoints(ctx context.Context, oldEndpoint, newEndpoint string) (*Result, error) {
	before, err := dial(ctx, oldEndpoint)
	if err != nil {
		return nil, err
	}
	defer before.close()
	after, err := dial(ctx, newEndpoint)
	if err != nil {
		return nil, err
	}
	defer after.close()
	for try := 1; ; try++ {
		r, err := ask(ctx, before, after)
		if err != nil || r.Same() || try == tries {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func ask(ctx context.Context, before, after *endpoint) (*Result, error) {
	a, err := before.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	b, err := after.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return snapshots(a, b), nil
}

// object is one thing that a shim tells of.
type object struct {
	name    string
	message proto.Message
}

// snapshot is all answers of one shim, by a key that both have: "pod ID", "container ID", "image ID", "version".
type snapshot map[string]object

// deciding are the fields that kubelets decide by, by kind of object; a name stands for what is below it, too.
var deciding = map[string][]string{
	"version":   {"runtime_name"},
	"pod":       {"metadata", "state", "created_at", "network", "linux.namespaces.options.network", "labels", "annotations"},
	"container": {"metadata", "state", "created_at", "started_at", "finished_at", "exit_code", "reason", "labels", "annotations", "log_path", "pod_sandbox_id"},
	"image":     {"id"},
}

// silent are fields that differ always and tell nobody anything.
var silent = map[string][]string{
	"version": {"version", "runtime_version", "runtime_api_version"},
	"pod":     {"timestamp", "containers_statuses"},
}

func snapshots(before, after snapshot) *Result {
	r := &Result{Differences: []Difference{}}
	for _, key := range keys(before, after) {
		kind, _, _ := strings.Cut(key, " ")
		a, inOld := before[key]
		b, inNew := after[key]
		switch {
		case !inNew:
			r.Differences = append(r.Differences, Difference{Object: a.name, Old: "there", New: "missing", Decides: true})
			continue
		case !inOld && ended(b):
			r.Differences = append(r.Differences, Difference{Object: b.name, Old: "missing", New: "there, and has ended"})
			continue
		case !inOld:
			r.Differences = append(r.Differences, Difference{Object: b.name, Old: "missing", New: "there", Decides: true})
			continue
		}
		switch kind {
		case "pod":
			r.Pods++
		case "container":
			r.Containers++
		case "image":
			r.Images++
		}
		r.Differences = append(r.Differences, fields(kind, a, b)...)
	}
	slices.SortStableFunc(r.Differences, func(a, b Difference) int { return cmp.Compare(rank(a), rank(b)) })
	return r
}

// ended says that a pod or container does not run any more. One that only the new shim knows is of its records of an earlier switch, and was
// removed under the old shim since: the kubelet collects it, and runs nothing in its place.
func ended(o object) bool {
	state := flat(o.message)["state"]
	return state == "SANDBOX_NOTREADY" || state == "CONTAINER_EXITED"
}

func rank(d Difference) int {
	if d.Decides {
		return 0
	}
	return 1
}

func keys(a, b snapshot) []string {
	var all []string
	for key := range a {
		all = append(all, key)
	}
	for key := range b {
		if _, there := a[key]; !there {
			all = append(all, key)
		}
	}
	slices.Sort(all)
	return all
}

func fields(kind string, a, b object) []Difference {
	before, after := flat(a.message), flat(b.message)
	names := map[string]bool{}
	for name := range before {
		names[name] = true
	}
	for name := range after {
		names[name] = true
	}
	var all []Difference
	for name := range names {
		if before[name] == after[name] || below(name, silent[kind]) {
			continue
		}
		decides := below(name, deciding[kind]) && !unread(kind, name, before, after)
		all = append(all, Difference{Object: a.name, Field: name, Old: before[name], New: after[name], Decides: decides})
	}
	slices.SortFunc(all, func(x, y Difference) int { return cmp.Compare(x.Field, y.Field) })
	return all
}

// unread says that no kubelet decides by the field although it does so otherwise: by the addresses of a sandbox that is not ready, the last
// end of a container that runs again, or what the shims call a container that could not start, which a person reads.
func unread(kind, name string, before, after map[string]string) bool {
	both := func(field, old, new string) bool { return before[field] == old && after[field] == new }
	switch {
	case kind == "pod":
		return below(name, []string{"network"}) && both("state", "SANDBOX_NOTREADY", "SANDBOX_NOTREADY")
	case name == "started_at":
		return mended(before, after)
	case name == "finished_at":
		return both("state", "CONTAINER_RUNNING", "CONTAINER_RUNNING")
	case name == "reason":
		return both("reason", "ContainerCannotRun", "StartError")
	}
	return false
}

// mended says that the old shim tells of a container that it ended before it started: dockerd notes the start of a process that
// ends at once after its end. No kubelet decides by that.
func mended(before, after map[string]string) bool {
	started, err1 := strconv.ParseInt(before["started_at"], 10, 64)
	finished, err2 := strconv.ParseInt(before["finished_at"], 10, 64)
	return err1 == nil && err2 == nil && started > finished && after["started_at"] == before["finished_at"] && after["finished_at"] == before["finished_at"]
}

func below(name string, of []string) bool {
	return slices.ContainsFunc(of, func(f string) bool {
		rest, ok := strings.CutPrefix(name, f)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// flat is every field that is set, by its path. Times before 1970 are none: dockershim tells year 1 of what has not happened.
func flat(m proto.Message) map[string]string {
	all := map[string]string{}
	flatten(all, "", m.ProtoReflect())
	return all
}

func flatten(all map[string]string, prefix string, m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		path := prefix + string(field.Name())
		switch {
		case field.IsMap():
			value.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
				put(all, fmt.Sprintf("%s[%s]", path, key.String()), field.MapValue(), v)
				return true
			})
		case field.IsList():
			list := value.List()
			for i := range list.Len() {
				put(all, fmt.Sprintf("%s[%d]", path, i), field, list.Get(i))
			}
		default:
			put(all, path, field, value)
		}
		return true
	})
}

func put(all map[string]string, path string, field protoreflect.FieldDescriptor, value protoreflect.Value) {
	if field.Kind() == protoreflect.MessageKind {
		flatten(all, path+".", value.Message())
		return
	}
	text := value.String()
	if field.Kind() == protoreflect.EnumKind {
		text = string(field.Enum().Values().ByNumber(value.Enum()).Name())
	}
	if strings.HasSuffix(path, "_at") && value.Int() <= 0 {
		return
	}
	all[path] = text
}

// WriteText prints the result for people.
func (r *Result) WriteText(out io.Writer) error {
	decides := 0
	var b strings.Builder
	for _, d := range r.Differences {
		mark := "told"
		if d.Decides {
			mark = "DECIDES"
			decides++
		}
		fmt.Fprintf(&b, "%-8s %s %s: %q was %q\n", mark, d.Object, or(d.Field, "itself"), d.New, d.Old)
	}
	fmt.Fprintf(&b, "%d pods, %d containers and %d images are on both sides; %d differences, the kubelet decides by %d of them\n", r.Pods, r.Containers, r.Images, len(r.Differences), decides)
	_, err := io.WriteString(out, b.String())
	return err
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
