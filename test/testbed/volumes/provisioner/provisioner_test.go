// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
	"github.com/registry-cache/extension/test/testbed/volumes/disk"
	"github.com/registry-cache/extension/test/testbed/volumes/provisioner"
)

// recorder is a node's disks by name, with their sizes in bytes.
type recorder struct {
	sizes map[string]int64
	err   error
}

func (r *recorder) Create(_ context.Context, name string, size int64) error {
	if r.err == nil {
		r.sizes[name] = size
	}
	return r.err
}

func (r *recorder) Remove(name string) error {
	if r.err == nil {
		delete(r.sizes, name)
	}
	return r.err
}

func newRecorder() *recorder { return &recorder{sizes: map[string]int64{}} }

func optionsFor(node, size string) controller.ProvisionOptions {
	return controller.ProvisionOptions{
		PVName:           "pvc-1",
		SelectedNodeName: node,
		StorageClass:     &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"volume.kubernetes.io/selected-node": node}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse(size),
				}},
			},
		},
	}
}

func TestEachNodeTakesItsOwn(t *testing.T) {
	t.Parallel()
	disks := newRecorder()
	here, elsewhere := provisioner.New("node-a", disks), provisioner.New("node-b", newRecorder())
	options := optionsFor("node-a", "500M")

	if !here.ShouldProvision(t.Context(), options.PVC) || elsewhere.ShouldProvision(t.Context(), options.PVC) {
		t.Error("the claim must be provisioned by the selected node alone")
	}
	if here.ShouldProvision(t.Context(), &corev1.PersistentVolumeClaim{}) {
		t.Error("a claim without a selected node must wait")
	}
	if _, _, err := elsewhere.Provision(t.Context(), options); !isIgnored(err) {
		t.Errorf("provisioning on another node: %v, want it ignored", err)
	}

	volume, state, err := here.Provision(t.Context(), options)
	if err != nil || state != controller.ProvisioningFinished {
		t.Fatalf("Provision: %s, %v", state, err)
	}
	if diff := cmp.Diff(map[string]int64{"pvc-1": 477 << 20}, disks.sizes); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	if got := volume.Spec.Capacity.Storage().String(); got != "477Mi" {
		t.Errorf("the volume says %s, its disk has 477Mi", got)
	}
	if volume.Name != "pvc-1" || volume.Spec.CSI.Driver != csidriver.Name || volume.Spec.CSI.VolumeHandle != "pvc-1" ||
		volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		t.Errorf("volume %s: %+v", volume.Name, volume.Spec)
	}
	if node := provisioner.NodeOf(volume); node != "node-a" {
		t.Errorf("the volume is on node %q", node)
	}

	if !here.ShouldDelete(t.Context(), volume) || elsewhere.ShouldDelete(t.Context(), volume) {
		t.Error("the volume must be deleted by its node alone")
	}
	if err := elsewhere.Delete(t.Context(), volume); !isIgnored(err) {
		t.Errorf("deleting on another node: %v, want it ignored", err)
	}
	disks.err = disk.ErrInUse
	if err := here.Delete(t.Context(), volume); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("deleting a mounted volume: %v, want ErrInUse", err)
	}
	disks.err = nil
	if err := here.Delete(t.Context(), volume); err != nil || len(disks.sizes) > 0 {
		t.Errorf("Delete: %v, disks left: %v", err, disks.sizes)
	}
}

func TestInfeasibleClaims(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*controller.ProvisionOptions)
		want   string
	}{
		{"too small", func(o *controller.ProvisionOptions) {
			o.PVC.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("1Mi")
		}, "spec.resources.requests.storage: a size of 1048576 bytes is too small for XFS: ask for 16Mi or more"},
		{"too large", func(o *controller.ProvisionOptions) {
			o.PVC.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("9Ti")
		}, "more than a volume can have"},
		{"limit below the request", func(o *controller.ProvisionOptions) {
			o.PVC.Spec.Resources.Limits = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("20Mi")}
		}, "no size between"},
		{"many nodes", func(o *controller.ProvisionOptions) {
			o.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, "spec.accessModes: ReadWriteMany is not supported"},
		{"selector", func(o *controller.ProvisionOptions) { o.PVC.Spec.Selector = &metav1.LabelSelector{} }, "spec.selector:"},
		{"data source", func(o *controller.ProvisionOptions) {
			o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
		}, "spec.dataSource:"},
		{"parameters", func(o *controller.ProvisionOptions) {
			o.StorageClass.Parameters = map[string]string{"type": "ssd"}
		}, "storage class default: parameters:"},
		{"mount options", func(o *controller.ProvisionOptions) {
			o.StorageClass.MountOptions = []string{"noatime"}
		}, "storage class default: mountOptions:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			options, disks := optionsFor("node-a", "1Gi"), newRecorder()
			tc.change(&options)
			_, state, err := provisioner.New("node-a", disks).Provision(t.Context(), options)
			if err == nil || !strings.Contains(err.Error(), tc.want) || status.Code(err) != codes.InvalidArgument || state != controller.ProvisioningFinished {
				t.Errorf("Provision: %s, %v (%s); want %q", state, err, status.Code(err), tc.want)
			}
			if len(disks.sizes) > 0 {
				t.Errorf("disks made: %v", disks.sizes)
			}
		})
	}
}

func TestFailedDiskIsRetried(t *testing.T) {
	t.Parallel()
	disks := newRecorder()
	disks.err = errors.New("no space left on device")
	_, state, err := provisioner.New("node-a", disks).Provision(t.Context(), optionsFor("node-a", "1Gi"))
	if !errors.Is(err, disks.err) || state != controller.ProvisioningFinished || status.Code(err) == codes.InvalidArgument {
		t.Errorf("Provision: %s, %v", state, err)
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset()
	add := func(name, node, driver string) {
		t.Helper()
		options := optionsFor(node, "1Gi")
		options.PVName = name
		volume, _, err := provisioner.New(node, newRecorder()).Provision(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		volume.Spec.CSI.Driver = driver
		if _, err := client.CoreV1().PersistentVolumes().Create(t.Context(), volume, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	add("pvc-here", "node-a", csidriver.Name)
	add("pvc-there", "node-b", csidriver.Name)
	add("pvc-foreign", "node-a", "other.example")
	if _, err := client.CoreV1().PersistentVolumes().Create(t.Context(),
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "not-csi"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	live, err := provisioner.Live(t.Context(), client, "node-a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"pvc-here": true}, live); diff != "" {
		t.Errorf("live volumes (-want +got):\n%s", diff)
	}
}

func isIgnored(err error) bool {
	var ignored *controller.IgnoredError
	return errors.As(err, &ignored)
}
