// SPDX-License-Identifier: Apache-2.0

// Package volumes gives a testbed cluster its default StorageClass: volumes on the disks of the nodes with a real size
// limit, that grow while they are used.
//
// A claim grows within a second or two after its pod is synced by the kubelet, which without a change to the pod
// happens every 60 to 90 s (syncFrequency of the kubelet's configuration).
//
// It installs a CSI driver (package csidriver) with its provisioner on every node, and the external-resizer of
// Kubernetes, built from its Go module.
package volumes

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// StorageClass is the name of the default StorageClass. Its volumes are bound to the node of the first pod that
	// uses them, and can be expanded.
	StorageClass = "default"
	// Namespace is where the driver and the external-resizer run.
	Namespace = "testbed-volumes"

	fieldOwner   = client.FieldOwner("registry-cache-testbed-volumes")
	defaultClass = "storageclass.kubernetes.io/is-default-class"

	// readyTimeout bounds the wait for the driver on all nodes; it takes a few seconds.
	readyTimeout  = 2 * time.Minute
	readyInterval = 300 * time.Millisecond
)

//go:embed manifest.yaml
var manifest []byte

// Install makes the volumes available: builds the driver and the external-resizer, loads and applies them, and takes
// the default from other StorageClasses. It returns when every node has the driver. A second call replaces only what
// changed; volumes in use are not disturbed.
func Install(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress) error {
	var reference, archive string
	if err := progress.Step("Building the driver of the volumes", func() (err error) {
		reference, archive, err = buildImage(ctx)
		return err
	}); err != nil {
		return err
	}
	return progress.Step("Installing the volumes", func() error {
		if err := cluster.LoadArchive(ctx, archive); err != nil {
			return err
		}
		config, err := cluster.RESTConfig()
		if err != nil {
			return err
		}
		c, err := client.New(config, client.Options{})
		if err != nil {
			return err
		}
		objects, err := decode(reference)
		if err != nil {
			return err
		}
		for _, object := range objects {
			if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), fieldOwner, client.ForceOwnership); err != nil {
				return fmt.Errorf("applying %s %s: %w", object.GetKind(), object.GetName(), err)
			}
		}
		if err := takeDefault(ctx, c); err != nil {
			return err
		}
		return poll.Until(ctx, readyInterval, readyTimeout, func(ctx context.Context) error { return ready(ctx, c) })
	})
}

// decode returns the objects of the manifest, with all containers using the image.
func decode(image string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the manifest of the volumes: %w", err)
		}
		object := &unstructured.Unstructured{}
		if err := sigsyaml.UnmarshalStrict(document, &object.Object); err != nil {
			return nil, fmt.Errorf("decoding the manifest of the volumes: %w", err)
		}
		path := []string{"spec", "template", "spec", "containers"}
		containers, found, err := unstructured.NestedSlice(object.Object, path...)
		if err != nil {
			return nil, fmt.Errorf("decoding %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		for _, container := range containers {
			container.(map[string]any)["image"] = image
		}
		if found {
			if err := unstructured.SetNestedSlice(object.Object, containers, path...); err != nil {
				return nil, err
			}
		}
		objects = append(objects, object)
	}
}

// takeDefault leaves one default StorageClass: with several, claims without a class get the newest.
func takeDefault(ctx context.Context, c client.Client) error {
	var classes storagev1.StorageClassList
	if err := c.List(ctx, &classes); err != nil {
		return fmt.Errorf("listing storage classes: %w", err)
	}
	for i := range classes.Items {
		class := &classes.Items[i]
		if class.Name == StorageClass || class.Annotations[defaultClass] != "true" {
			continue
		}
		before := client.MergeFrom(class.DeepCopy())
		class.Annotations[defaultClass] = "false"
		if err := c.Patch(ctx, class, before); err != nil {
			return fmt.Errorf("taking the default from storage class %s: %w", class.Name, err)
		}
	}
	return nil
}

// ready tells what is missing until every node has the driver and claims can be resized.
func ready(ctx context.Context, c client.Client) error {
	var daemons appsv1.DaemonSet
	if err := c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: "node"}, &daemons); err != nil {
		return err
	}
	status := daemons.Status
	if status.ObservedGeneration < daemons.Generation || status.UpdatedNumberScheduled < status.DesiredNumberScheduled ||
		status.NumberAvailable < status.DesiredNumberScheduled || status.DesiredNumberScheduled == 0 {
		return fmt.Errorf("the driver runs on %d of %d nodes", min(status.UpdatedNumberScheduled, status.NumberAvailable), status.DesiredNumberScheduled)
	}
	var resizer appsv1.Deployment
	if err := c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: "resizer"}, &resizer); err != nil {
		return err
	}
	if resizer.Status.ObservedGeneration < resizer.Generation || resizer.Status.UpdatedReplicas < 1 || resizer.Status.AvailableReplicas < 1 {
		return errors.New("the external-resizer is not available")
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return err
	}
	for _, node := range nodes.Items {
		var registered storagev1.CSINode
		if err := c.Get(ctx, client.ObjectKey{Name: node.Name}, &registered); err != nil {
			return err
		}
		if !hasDriver(registered) {
			return fmt.Errorf("the kubelet of node %s has not registered the driver: its journal tells why", node.Name)
		}
	}
	return nil
}

func hasDriver(node storagev1.CSINode) bool {
	for _, driver := range node.Spec.Drivers {
		if driver.Name == csidriver.Name {
			return true
		}
	}
	return false
}
