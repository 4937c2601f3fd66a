//! The parts of a tenant's routes, and the table of deliveries.

use std::sync::Arc;

use anyhow::Context;

use crate::config::{OnPing, RouteConfig, TenantConfig};
use crate::consumer::{Registry, RouteConsumer};
use crate::ids::TenantId;
use crate::relay::RouteDelivery;
use crate::render::Delivery;
use crate::routes::Route;
use crate::templates::Template;
use crate::tenant::{RouteParts, Tenant};

/// Builds the parts of each route of `config`, and the deliveries of all sockets. `before` is the tenant whose sockets
/// stay; their deliveries are included.
pub(super) fn build(
    id: &TenantId,
    config: &TenantConfig,
    registry: &Registry,
    before: Option<&Tenant>,
) -> anyhow::Result<Built> {
    let mut deliveries = Deliveries::after(before);
    let mut part = |route: &RouteConfig| {
        let consumer = registry.consumer(route).map_err(anyhow::Error::msg)?;
        let path = Route::of(route)?;
        let groups = route.groups.iter();
        let groups = groups.map(|text| Template::of(text, &path, id));
        anyhow::Ok(RouteParts {
            groups: groups.collect::<Result<_, _>>()?,
            delivery: deliveries.slot_of(route, &consumer)?,
            consumer,
            subprotocols: route.subprotocols.clone(),
            resume: route.resume,
            anonymous: route.anonymous,
        })
    };
    let part = |route| part(route).with_context(|| format!("route {:?}", route.path));
    let parts: anyhow::Result<Vec<_>> = config.routes.iter().map(part).collect();
    Ok(Built {
        parts: parts?,
        deliveries: deliveries.slots,
    })
}

/// The routes of one tenant.
pub(super) struct Built {
    /// By the index of the route.
    pub(super) parts: Vec<RouteParts>,
    /// By the index that each socket carries.
    pub(super) deliveries: Vec<Option<Arc<RouteDelivery>>>,
}

/// The table of deliveries. Open sockets hold indexes into it, so an unchanged route keeps its slot.
struct Deliveries<'b> {
    before: Option<&'b Tenant>,
    slots: Vec<Option<Arc<RouteDelivery>>>,
}

impl<'b> Deliveries<'b> {
    /// Keeps the slots that sockets of `before` use, even if their routes are removed: they get events until they close.
    fn after(before: Option<&'b Tenant>) -> Self {
        let mut slots = Vec::new();
        if let Some(before) = before {
            slots.clone_from(&before.relay.settings().deliveries);
            let mut used = vec![false; slots.len()];
            for part in &before.parts {
                used[usize::from(part.delivery)] = true;
            }
            for member in before.relay.hub().members() {
                used[usize::from(member.delivery())] = true;
            }
            for (slot, used) in slots.iter_mut().zip(used) {
                if !used {
                    *slot = None;
                }
            }
        }
        Self { before, slots }
    }

    /// Returns the slot of a route: its old one if it is unchanged, else a free one.
    fn slot_of(&mut self, route: &RouteConfig, consumer: &RouteConsumer) -> anyhow::Result<u16> {
        if let Some(before) = self.before {
            let same = before.config.routes.iter().position(|old| old == route);
            if let Some(same) = same {
                return Ok(before.parts[same].delivery);
            }
        }
        let delivery = RouteDelivery {
            delivery: Delivery::new(route.deliver.clone(), &route.events)?
                .with_resume(route.resume),
            through_consumer: consumer.sees_events,
            tells_channel: consumer.tells_channel,
            answers_pings: route.on_ping == OnPing::Reply,
        };
        let delivery = Some(Arc::new(delivery));
        let free = self.slots.iter().position(Option::is_none);
        let at = free.unwrap_or(self.slots.len());
        match free {
            Some(at) => self.slots[at] = delivery,
            None => self.slots.push(delivery),
        }
        u16::try_from(at).context("too many routes")
    }
}
