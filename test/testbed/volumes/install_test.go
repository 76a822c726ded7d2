// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

const testImage = "localhost/volumes:1"

// typed returns the objects of the manifest as their Go types; an unknown field fails the test.
func typed(t *testing.T) []runtime.Object {
	t.Helper()
	objects, err := decode(testImage)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var decoded []runtime.Object
	for _, object := range objects {
		content, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, err := decoder.Decode(content, nil, nil)
		if err != nil {
			t.Fatalf("%s %s: %v", object.GetKind(), object.GetName(), err)
		}
		decoded = append(decoded, kind)
	}
	return decoded
}

func TestManifestSaysWhatTheCodeDoes(t *testing.T) {
	t.Parallel()
	endpoint := "unix:///var/lib/kubelet/plugins/" + csidriver.Name + "/csi.sock"
	seen := map[string]bool{}
	for _, object := range typed(t) {
		switch o := object.(type) {
		case *storagev1.StorageClass:
			if o.Name != StorageClass || o.Provisioner != csidriver.Name || o.Annotations[defaultClass] != "true" ||
				!*o.AllowVolumeExpansion || *o.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
				t.Errorf("storage class: %+v", o)
			}
		case *storagev1.CSIDriver:
			if o.Name != csidriver.Name || *o.Spec.AttachRequired || *o.Spec.FSGroupPolicy != storagev1.FileFSGroupPolicy {
				t.Errorf("CSIDriver: %+v", o)
			}
		case *appsv1.DaemonSet:
			container := o.Spec.Template.Spec.Containers[0]
			if o.Namespace != Namespace || container.Image != testImage || !strings.Contains(strings.Join(container.Args, " "), endpoint) {
				t.Errorf("driver: %+v", container)
			}
			mounted := false
			for _, mount := range container.VolumeMounts {
				mounted = mounted || strings.HasSuffix(mount.MountPath+"/", disksDir)
			}
			if !mounted {
				t.Errorf("the driver has no mount of %s", disksDir)
			}
		case *appsv1.Deployment:
			for _, container := range o.Spec.Template.Spec.Containers {
				if container.Image != testImage {
					t.Errorf("container %s has image %s", container.Name, container.Image)
				}
			}
		}
		seen[object.GetObjectKind().GroupVersionKind().Kind] = true
	}
	for _, kind := range []string{"StorageClass", "CSIDriver", "DaemonSet", "Deployment"} {
		if !seen[kind] {
			t.Errorf("the manifest has no %s", kind)
		}
	}
}

func TestTakeDefault(t *testing.T) {
	t.Parallel()
	class := func(name, isDefault string) *storagev1.StorageClass {
		return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{defaultClass: isDefault}}}
	}
	c := fake.NewClientBuilder().WithObjects(class(StorageClass, "true"), class("standard", "true"), class("other", "false"),
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "plain"}}).Build()
	for range 2 {
		if err := takeDefault(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	var classes storagev1.StorageClassList
	if err := c.List(t.Context(), &classes); err != nil {
		t.Fatal(err)
	}
	for _, got := range classes.Items {
		if isDefault := got.Annotations[defaultClass] == "true"; isDefault != (got.Name == StorageClass) {
			t.Errorf("storage class %s is default: %t", got.Name, isDefault)
		}
	}
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	daemons := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "node", Generation: 2},
		Status:     appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberAvailable: 2},
	}
	resizer := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "resizer", Generation: 1},
		Status:     appsv1.DeploymentStatus{ObservedGeneration: 1, UpdatedReplicas: 1, AvailableReplicas: 1},
	}
	registered := func(name string, drivers ...string) *storagev1.CSINode {
		node := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, driver := range drivers {
			node.Spec.Drivers = append(node.Spec.Drivers, storagev1.CSINodeDriver{Name: driver, NodeID: name})
		}
		return node
	}
	nodes := []client.Object{
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b"}},
	}
	change := func(change func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
		copied := daemons.DeepCopy()
		change(copied)
		return copied
	}
	for _, tc := range []struct {
		name    string
		objects []client.Object
		want    string
	}{
		{"all there", []client.Object{daemons, resizer, registered("a", csidriver.Name), registered("b", "other", csidriver.Name)}, ""},
		{"nothing applied", nil, "not found"},
		{"not observed", []client.Object{change(func(d *appsv1.DaemonSet) { d.Generation = 3 })}, "the driver runs on 2 of 2 nodes"},
		{"one pod is missing", []client.Object{change(func(d *appsv1.DaemonSet) { d.Status.NumberAvailable = 1 })}, "the driver runs on 1 of 2 nodes"},
		{"old pods", []client.Object{change(func(d *appsv1.DaemonSet) { d.Status.UpdatedNumberScheduled = 0 })}, "the driver runs on 0 of 2 nodes"},
		{"no resizer", []client.Object{daemons, &appsv1.Deployment{ObjectMeta: resizer.ObjectMeta}}, "external-resizer is not available"},
		{"not registered", []client.Object{daemons, resizer, registered("a", csidriver.Name), registered("b", "other")}, "the kubelet of node b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			builder := fake.NewClientBuilder()
			for _, object := range slices.Concat(tc.objects, nodes) {
				// The client writes into what it is given, and the cases share objects.
				builder.WithObjects(object.DeepCopyObject().(client.Object))
			}
			err := ready(t.Context(), builder.Build())
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ready: %v, want %q", err, tc.want)
			}
		})
	}
}

func TestOrphaned(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		path    string
		deleted bool
		want    bool
	}{
		{"/var/lib/registry-cache-testbed/volumes/pvc-1.img", true, true},
		{"/var/lib/containers/storage/volumes/0123/_data/lib/registry-cache-testbed/volumes/pvc-1.img", true, true},
		{"/var/lib/registry-cache-testbed/volumes/pvc-1.img", false, false},
		{"/home/somebody/volumes/disk.img", true, false},
	} {
		if got := orphaned(loop.Device{Path: "/dev/loop9", FilePath: tc.path, Deleted: tc.deleted}); got != tc.want {
			t.Errorf("orphaned(%s, deleted %t) = %t", tc.path, tc.deleted, got)
		}
	}
}

func TestTagFollowsTheContent(t *testing.T) {
	t.Parallel()
	write := func(driver, resizer, xfs string) string {
		t.Helper()
		dir := t.TempDir()
		p := parts{driver: filepath.Join(dir, "driver"), resizer: filepath.Join(dir, "resizer"), xfs: filepath.Join(dir, "xfs")}
		for path, content := range map[string]string{p.driver: driver, p.resizer: resizer, p.xfs: xfs} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tag, err := p.hash()
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	tag := write("a", "b", "c")
	if len(tag) != 16 || write("a", "b", "c") != tag {
		t.Errorf("tag %q is not the same for the same content", tag)
	}
	for _, other := range []string{write("x", "b", "c"), write("a", "x", "c"), write("a", "b", "x"), write("ab", "", "c")} {
		if other == tag {
			t.Errorf("other content has the same tag %s", tag)
		}
	}
}
