// SPDX-License-Identifier: Apache-2.0

// Package provisioner makes and deletes the volumes of one node for PersistentVolumeClaims.
//
// Every node has one. A claim is taken by that of the node the scheduler selected for its pod, a volume is deleted by
// that of the node in its node affinity.
package provisioner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
	"github.com/registry-cache/extension/test/testbed/volumes/disk"
)

// selectedNode is the annotation in which the scheduler names the node for a claim's volume.
const selectedNode = "volume.kubernetes.io/selected-node"

// A volume is deleted when its last mount is gone, which is a matter of seconds: retries are quick at first.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// Disks makes and removes what is behind volumes.
type Disks interface {
	// Create makes a disk of size bytes; one that exists with this size is fine.
	Create(ctx context.Context, name string, size int64) error
	// Remove deletes a disk; that it does not exist is fine.
	Remove(name string) error
}

// Provisioner decides about the claims and volumes of one node.
type Provisioner struct {
	node  string
	disks Disks
}

var (
	_ controller.Provisioner   = (*Provisioner)(nil)
	_ controller.Qualifier     = (*Provisioner)(nil)
	_ controller.DeletionGuard = (*Provisioner)(nil)
)

// New returns the provisioner of the node with the given name.
func New(node string, disks Disks) *Provisioner { return &Provisioner{node: node, disks: disks} }

// Run works on claims and volumes until ctx is done.
func (p *Provisioner) Run(ctx context.Context, client kubernetes.Interface) {
	controller.NewProvisionController(ctx, client, csidriver.Name, p,
		controller.LeaderElection(false), // the nodes' provisioners share nothing
		controller.RateLimiter(workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry)),
		controller.FailedProvisionThreshold(0),
		controller.FailedDeleteThreshold(0),
	).Run(ctx)
}

// ShouldProvision tells whether the claim's volume shall be on this node.
func (p *Provisioner) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	return claim.Annotations[selectedNode] == p.node
}

// ShouldDelete tells whether the volume is on this node.
func (p *Provisioner) ShouldDelete(_ context.Context, volume *corev1.PersistentVolume) bool {
	return NodeOf(volume) == p.node
}

// Provision makes a disk and returns its volume. What can never be provisioned has the gRPC code InvalidArgument, which
// the library retries rarely.
func (p *Provisioner) Provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if options.SelectedNodeName != p.node {
		return nil, controller.ProvisioningFinished, &controller.IgnoredError{Reason: fmt.Sprintf("node %q was selected", options.SelectedNodeName)}
	}
	size, err := check(options)
	if err != nil {
		return nil, controller.ProvisioningFinished, &infeasibleError{err}
	}
	if err := p.disks.Create(ctx, options.PVName, size); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return volume(options, size), controller.ProvisioningFinished, nil
}

// Delete removes the volume's disk. It fails as long as the volume is mounted.
func (p *Provisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	if NodeOf(volume) != p.node {
		return &controller.IgnoredError{Reason: "the volume is on another node"}
	}
	return p.disks.Remove(volume.Spec.CSI.VolumeHandle)
}

// NodeOf returns the name of the node that a volume of this driver is on, or "" for all other volumes.
func NodeOf(volume *corev1.PersistentVolume) string {
	if volume.Spec.CSI == nil || volume.Spec.CSI.Driver != csidriver.Name ||
		volume.Spec.NodeAffinity == nil || volume.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range volume.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, requirement := range term.MatchExpressions {
			if requirement.Key == corev1.LabelHostname && requirement.Operator == corev1.NodeSelectorOpIn && len(requirement.Values) == 1 {
				return requirement.Values[0]
			}
		}
	}
	return ""
}

// Live returns the names of the volumes on the given node.
func Live(ctx context.Context, client kubernetes.Interface, node string) (map[string]bool, error) {
	volumes, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	live := map[string]bool{}
	for i := range volumes.Items {
		if NodeOf(&volumes.Items[i]) == node {
			live[volumes.Items[i].Spec.CSI.VolumeHandle] = true
		}
	}
	return live, nil
}

// check returns the size in bytes of the disk for a claim, or why there can be none.
func check(options controller.ProvisionOptions) (int64, error) {
	claim, class := options.PVC, options.StorageClass
	switch {
	case len(class.Parameters) > 0:
		return 0, fmt.Errorf("storage class %s: parameters: none are supported: remove them", class.Name)
	case len(class.MountOptions) > 0:
		return 0, fmt.Errorf("storage class %s: mountOptions: none are supported: remove them", class.Name)
	case claim.Spec.Selector != nil:
		return 0, errors.New("spec.selector: selecting among volumes is not supported: remove it")
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return 0, errors.New("spec.dataSource: volumes start empty: remove it")
	}
	for _, mode := range claim.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return 0, fmt.Errorf("spec.accessModes: %s is not supported, a volume belongs to one node: use ReadWriteOnce", mode)
		}
	}
	size, err := disk.Size(claim.Spec.Resources.Requests.Storage().Value(), claim.Spec.Resources.Limits.Storage().Value())
	if err != nil {
		return 0, fmt.Errorf("spec.resources.requests.storage: %w", err)
	}
	return size, nil
}

func volume(options controller.ProvisionOptions, size int64) *corev1.PersistentVolume {
	reclaim := corev1.PersistentVolumeReclaimDelete
	if options.StorageClass.ReclaimPolicy != nil {
		reclaim = *options.StorageClass.ReclaimPolicy
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI)},
			AccessModes:                   options.PVC.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: reclaim,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: csidriver.Name, VolumeHandle: options.PVName, FSType: csidriver.FileSystem,
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{options.SelectedNodeName},
				}},
			}}}},
		},
	}
}

// infeasibleError is an error that a retry cannot cure.
type infeasibleError struct{ error }

// GRPCStatus gives the code by which the library knows such errors.
func (e *infeasibleError) GRPCStatus() *status.Status {
	return status.New(codes.InvalidArgument, e.Error())
}

func (e *infeasibleError) Unwrap() error { return e.error }
